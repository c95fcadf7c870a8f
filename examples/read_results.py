#!/usr/bin/env python3
"""Reads what diadfilter says, in Python: metas on buffers (appsink) and messages on the bus.

    GST_PLUGIN_PATH=target/release python3 examples/read_results.py demo/demo.diad demo/line/part_%03d.png

Needs Debian's python3-gi and gir1.2-gst-plugins-base-1.0.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstApp", "1.0")
gi.require_version("GstVideo", "1.0")
from gi.repository import Gst, GstApp, GstVideo  # noqa: E402, F401 (the types are registered by the import)


def fields(structure):
    """A GstStructure as a dictionary; nested structures and arrays too."""
    values = {}
    for index in range(structure.n_fields()):
        name = structure.nth_field_name(index)
        value = structure.get_value(name)
        if isinstance(value, Gst.Structure):
            value = fields(value)
        elif isinstance(value, (list, tuple, Gst.ValueArray)):
            value = [fields(item) if isinstance(item, Gst.Structure) else item for item in value]
        values[name] = value
    return values


def main(model, images):
    Gst.init(None)
    pipeline = Gst.parse_launch(
        f"multifilesrc location={images} caps=image/png,framerate=4/1 ! pngdec ! videoconvert ! "
        f"diadfilter model={model} meta=regions+result+map post-messages=ng ! appsink name=sink sync=false"
    )
    sink, bus = pipeline.get_by_name("sink"), pipeline.get_bus()
    pipeline.set_state(Gst.State.PLAYING)
    seen = 0
    while sample := sink.emit("pull-sample"):
        buffer = sample.get_buffer()
        frame = fields(buffer.get_custom_meta("DiadResult").get_structure())
        for result in frame["results"]:  # one per diadfilter that the frame has passed
            regions = [] if buffer.get_custom_meta("DiadMap") is None else result.get("regions", [])
            print(result["frame-id"], frame["verdict"], result.get("class"), result.get("score"), len(regions), "regions")
        seen += 1
        while message := bus.pop_filtered(Gst.MessageType.ELEMENT | Gst.MessageType.ERROR):
            if message.type == Gst.MessageType.ERROR:
                sys.exit(message.parse_error().gerror.message)
            if message.get_structure().get_name() == "diad-result":
                print("  rejected:", message.get_structure().to_string())
    pipeline.set_state(Gst.State.NULL)
    if seen == 0:
        error = bus.pop_filtered(Gst.MessageType.ERROR)
        sys.exit(error.parse_error().gerror.message if error else "no frame came")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
