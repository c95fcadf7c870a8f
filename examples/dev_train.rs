use diad::{train::*, config::Config, data::*, detector::*};
use std::path::Path;
struct O(std::time::Instant);
impl Observer for O { fn event(&self, e: &Event<'_>) { match e { Event::Step{step,..} if step % 50 != 0 => {}, Event::Features{done,..} if done % 200 != 0 => {}, _ => println!("{:.1}s {e:?}", self.0.elapsed().as_secs_f64()) } } }
fn main() {
    let mut a = std::env::args().skip(1);
    let root = a.next().unwrap(); let out = a.next().unwrap(); let steps: usize = a.next().unwrap().parse().unwrap();
    let classes: Vec<String> = a.collect();
    let mut c = Config::default(); c.training.steps = steps; c.training.learning_rate = 3e-3; c.denoiser.dropout = 0.0;
    let d = Dataset::scan(Path::new(&root), &classes).unwrap();
    let o = train(&c, &d, &Options { out: out.into(), backbone: None, resume: false }, &O(std::time::Instant::now()), &Stop::default()).unwrap();
    println!("{:?} {:.1} img/s", o.seconds, o.images_per_second);
    let det = o.detector;
    let mut mean = [0f64; 2];
    for cat in &d.categories {
        let mut s = vec![]; let mut l = vec![]; let mut px = diad::metrics::PixelSet::new(); let mut masks = false; let mut wrong = 0;
        let t = std::time::Instant::now();
        for chunk in cat.test.chunks(8) {
            let frames: Vec<_> = chunk.iter().map(|x| read_frame(&x.path).unwrap()).collect();
            for (x, r) in chunk.iter().zip(det.detect(&frames, Choice::Auto)) {
                let r = r.unwrap();
                if r.class != cat.name || r.class_source == ClassSource::UnknownProduct { wrong += 1; }
                s.push(r.score); l.push(x.label.is_defect());
                let m = if let Some(m) = &x.mask { masks = true; read_mask(m, 256, 256).unwrap() } else { vec![false; 65536] };
                if x.mask.is_some() || !x.label.is_defect() { px.push(&r.map.resized(256), &m, 256, 256).unwrap(); }
            }
        }
        let el = t.elapsed().as_secs_f64() / cat.test.len() as f64;
        println!("{} image auroc {:?} wrong class {wrong}/{} {:.1} ms/img", cat.name, diad::metrics::auroc(&s, &l), s.len(), el*1e3);
        if masks { let r = px.rank(); println!("   px auroc {:?} ap {:?} aupro {:?}", r.auroc(), r.average_precision(), r.aupro(0.3)); }
        mean[0] += diad::metrics::auroc(&s, &l).unwrap_or(0.0);
    }
    println!("mean {}", mean[0] / d.categories.len() as f64);
}
