/* Reads the results of diadfilter in C: a pad probe and the custom meta, nothing of ours to link.
 *
 *   cc examples/read_results.c -o read_results $(pkg-config --cflags --libs gstreamer-1.0)
 *   GST_PLUGIN_PATH=$PWD/target/release ./read_results "videotestsrc num-buffers=9 ! diadfilter name=inspect model=M.diad ! fakesink"
 */
#include <gst/gst.h>

static GstPadProbeReturn on_frame (GstPad *pad, GstPadProbeInfo *info, gpointer user_data)
{
  (void) pad;
  (void) user_data;
  GstBuffer *buffer = GST_PAD_PROBE_INFO_BUFFER (info);
  GstCustomMeta *meta = gst_buffer_get_custom_meta (buffer, "DiadResult");
  if (meta == NULL) /* meta=result is switched off */
    return GST_PAD_PROBE_OK;

  GstStructure *all = gst_custom_meta_get_structure (meta);
  const GValue *results = gst_structure_get_value (all, "results"); /* one per diadfilter; here there is one */
  const GstStructure *result = gst_value_get_structure (gst_value_array_get_value (results, 0));
  guint64 frame = 0;
  gst_structure_get_uint64 (result, "frame-id", &frame);
  g_print ("frame %" G_GUINT64_FORMAT ": %s", frame, gst_structure_get_string (all, "verdict"));

  gdouble score, threshold;
  if (gst_structure_get_double (result, "score", &score) && gst_structure_get_double (result, "threshold", &threshold))
    g_print (", score %.3f of %.3f", score, threshold);
  else /* it was not inspected, and is not good */
    g_print (", not inspected: %s", gst_structure_get_string (result, "reason"));

  const GValue *regions = gst_structure_get_value (result, "regions");
  guint count = regions ? gst_value_array_get_size (regions) : 0;
  for (guint i = 0; i < count; i++) {
    const GstStructure *region = gst_value_get_structure (gst_value_array_get_value (regions, i));
    guint x = 0, y = 0, width = 0, height = 0;
    gst_structure_get (region, "x", G_TYPE_UINT, &x, "y", G_TYPE_UINT, &y, "width", G_TYPE_UINT, &width, "height",
        G_TYPE_UINT, &height, NULL);
    g_print ("; defect at %u,%u of %ux%u", x, y, width, height);
  }
  g_print ("\n");
  return GST_PAD_PROBE_OK;
}

int main (int argc, char **argv)
{
  gst_init (&argc, &argv);
  if (argc != 2) {
    g_printerr ("usage: %s PIPELINE, with a diadfilter that has name=inspect\n", argv[0]);
    return 2;
  }
  GError *error = NULL;
  GstElement *pipeline = gst_parse_launch (argv[1], &error);
  if (error != NULL) {
    g_printerr ("%s\n", error->message);
    return 2;
  }
  GstElement *filter = GST_IS_BIN (pipeline) ? gst_bin_get_by_name (GST_BIN (pipeline), "inspect") : NULL;
  if (filter == NULL) {
    g_printerr ("no element has name=inspect\n");
    return 2;
  }
  GstPad *pad = gst_element_get_static_pad (filter, "src");
  gst_pad_add_probe (pad, GST_PAD_PROBE_TYPE_BUFFER, on_frame, NULL, NULL);

  gst_element_set_state (pipeline, GST_STATE_PLAYING);
  GstBus *bus = gst_element_get_bus (pipeline);
  GstMessage *message = gst_bus_timed_pop_filtered (bus, GST_CLOCK_TIME_NONE, GST_MESSAGE_ERROR | GST_MESSAGE_EOS);
  int code = 0;
  if (GST_MESSAGE_TYPE (message) == GST_MESSAGE_ERROR) {
    gst_message_parse_error (message, &error, NULL);
    g_printerr ("%s\n", error->message);
    code = 1;
  }
  gst_message_unref (message);
  gst_object_unref (bus);
  gst_object_unref (pad);
  gst_object_unref (filter);
  gst_element_set_state (pipeline, GST_STATE_NULL);
  gst_object_unref (pipeline);
  return code;
}
