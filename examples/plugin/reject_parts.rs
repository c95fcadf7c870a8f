//! Rejects parts on the bus message, and reads the metadata of every frame from an appsink.
//!
//! ```sh
//! cargo run --release -p gst-plugin-diad --example reject_parts -- demo/demo.diad demo/line/part_%03d.png
//! ```

use std::error::Error;

use gst::MessageView;
use gst::prelude::*;
use gstdiad::meta;
use gstdiad::result::DiadResult;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, images] = &arguments[..] else {
        return Err("expected a model and a pattern of images, as demo/demo.diad demo/line/part_%03d.png".into());
    };
    gst::init()?;
    gstdiad::plugin_register_static()?;
    let pipeline = gst::parse::launch(
        "multifilesrc name=source caps=image/png,framerate=4/1 ! pngdec ! videoconvert ! diadfilter name=filter \
         post-messages=ng confirm-count=1 ! appsink name=sink sync=false",
    )?;
    let pipeline = pipeline.downcast::<gst::Pipeline>().map_err(|_| "not a pipeline")?;
    let named = |name: &str| pipeline.by_name(name).ok_or("an element is missing");
    named("source")?.set_property("location", images);
    named("filter")?.set_property("model", model);
    let sink = named("sink")?.downcast::<gst_app::AppSink>().map_err(|_| "not an appsink")?;
    // Every frame, on the streaming thread.
    let callbacks = gst_app::AppSinkCallbacks::builder().new_sample(|sink| {
        let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
        if let Some(result) = sample.buffer().and_then(meta::result_of) {
            // One inspection per diadfilter that the frame has passed; the verdict is the worst of theirs.
            for inspection in &result.results {
                let regions = inspection.finding.as_ref().map_or(0, |finding| finding.regions.len());
                println!("frame {}: {}, {regions} regions", inspection.frame_id, result.verdict);
            }
        }
        Ok(gst::FlowSuccess::Ok)
    });
    sink.set_callbacks(callbacks.build());

    pipeline.set_state(gst::State::Playing)?;
    let bus = pipeline.bus().ok_or("a pipeline without a bus")?;
    for message in bus.iter_timed(gst::ClockTime::NONE) {
        match message.view() {
            MessageView::Element(element) => {
                if let Some(Ok(result)) = element.structure().map(DiadResult::try_from) {
                    println!("  REJECT the part at {:?} ns ({:?})", result.pts, result.part_id);
                }
            }
            MessageView::Eos(_) => break,
            MessageView::Error(error) => return Err(error.error().into()),
            _ => {}
        }
    }
    pipeline.set_state(gst::State::Null)?;
    Ok(())
}
