//! When a clip begins, what is in it, and when it ends: no files and no GStreamer in it.

use std::collections::VecDeque;

/// An encoded frame. Times are in ns.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Unit<T> {
    pub(super) time: u64,
    /// Whether it can be decoded without the ones before it.
    pub(super) key: bool,
    pub(super) bytes: usize,
    pub(super) data: T,
}

/// How long clips are. Times are in ns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// From before the moment.
    pub(super) pre: u64,
    /// After the last moment.
    pub(super) post: u64,
    /// A clip of so much is followed by the next.
    pub(super) longest: u64,
    /// Bytes that are kept for the next clip.
    pub(super) memory: usize,
}

/// What a clip is of.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Cause<E> {
    /// When what the clip is of began.
    pub(super) moment: u64,
    /// The last event, and when it was.
    pub(super) event: E,
    pub(super) at: u64,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub(super) enum Action<T, E> {
    /// A clip begins with these, the first of which is a key frame; whether it goes on where the one before has ended.
    Begin {
        units: Vec<Unit<T>>,
        cause: Cause<E>,
        continues: bool,
    },
    Push(Unit<T>),
    End,
}

/// Keeps the last whole groups of pictures (each from a key frame to the next), and cuts clips out of the stream.
#[derive(Debug)]
pub(super) struct Cutter<T, E> {
    groups: VecDeque<Vec<Unit<T>>>,
    bytes: usize,
    /// Time of the last key frame, and the latest time of all.
    key: Option<u64>,
    now: u64,
    /// What is to be in a clip, and until when.
    wanted: Option<(Cause<E>, u64)>,
    /// When the open clip began.
    open: Option<u64>,
}

impl<T, E> Default for Cutter<T, E> {
    fn default() -> Self {
        Self { groups: VecDeque::new(), bytes: 0, key: None, now: 0, wanted: None, open: None }
    }
}

impl<T: Clone, E: Clone> Cutter<T, E> {
    /// The next frame of the stream, with what happened in it. Without `may_begin` no clip is begun now.
    pub(super) fn take(&mut self, unit: Unit<T>, event: Option<E>, rules: Rules, may_begin: bool) -> Vec<Action<T, E>> {
        let mut actions = Vec::new();
        let mut fits = true;
        if unit.key {
            if self.key.is_some_and(|key| unit.time < key) {
                actions.extend(self.clear()); // time runs back: another stream
            }
            // The next group will be about as long as the last.
            let ahead = self.key.map_or(0, |key| unit.time - key);
            fits = self.open.is_none_or(|start| unit.time + ahead <= start.saturating_add(rules.longest));
            (self.key, self.now) = (Some(unit.time), unit.time.max(self.now));
            self.groups.push_back(Vec::new());
        }
        self.now = self.now.max(unit.time);
        if let Some(group) = self.groups.back_mut() {
            group.push(unit.clone());
            self.bytes += unit.bytes;
        }
        let happened = event.is_some();
        if let Some(event) = event {
            let until = unit.time.saturating_add(rules.post);
            let moment = match &self.wanted {
                Some((cause, until)) if unit.time <= *until => cause.moment,
                _ => unit.time,
            };
            self.wanted = Some((Cause { moment, event, at: unit.time }, until));
        }
        self.wanted.take_if(|(_, until)| *until < unit.time);
        match (&self.wanted, self.open) {
            (None, Some(_)) => {
                self.open = None;
                actions.push(Action::End);
            }
            (Some((cause, _)), Some(_)) if !fits => {
                let cause = Cause { moment: unit.time, ..cause.clone() };
                self.open = Some(unit.time);
                actions.extend([Action::End, Action::Begin { units: vec![unit], cause, continues: !happened }]);
            }
            (Some(_), Some(_)) => actions.push(Action::Push(unit)),
            (Some((cause, _)), None) if may_begin => {
                let from = cause.moment.saturating_sub(rules.pre);
                let early = self.groups.iter().rposition(|group| group[0].time <= from).unwrap_or(0);
                let units: Vec<_> = self.groups.iter().skip(early).flatten().cloned().collect();
                if let Some(first) = units.first() {
                    self.open = Some(first.time);
                    // What happened before the first picture that is left is not in the clip.
                    let cause = Cause { moment: cause.moment.max(first.time), ..cause.clone() };
                    actions.push(Action::Begin { units, cause, continues: false });
                }
            }
            _ => {}
        }
        self.trim(rules);
        actions
    }

    /// Drops what no clip will need, and what there is no memory for.
    fn trim(&mut self, rules: Rules) {
        let from = self.now.saturating_sub(rules.pre);
        while self.bytes > rules.memory || self.groups.get(1).is_some_and(|second| second[0].time <= from) {
            let Some(group) = self.groups.pop_front() else { break };
            self.bytes -= group.iter().map(|unit| unit.bytes).sum::<usize>();
        }
    }

    /// The open clip was given up by whoever writes it.
    pub(super) fn give_up(&mut self) {
        self.open = None;
    }

    /// Forgets the stream; what comes next is another.
    pub(super) fn clear(&mut self) -> Option<Action<T, E>> {
        let open = std::mem::take(self).open;
        open.map(|_| Action::End)
    }

    /// How long the last key frame is ago, if there was one.
    pub(super) fn since_key(&self) -> Option<u64> {
        self.key.map(|key| self.now - key)
    }

    /// ns of video that are kept for the next clip.
    pub(super) fn kept(&self) -> u64 {
        self.groups.front().map_or(0, |group| self.now.saturating_sub(group[0].time))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: Rules = Rules { pre: 50, post: 30, longest: 1000, memory: 10_000 };

    /// Frames of 10 ns and 10 bytes with a key frame every `group`; events in frames by number. The clips, as numbers of frames.
    fn cut(frames: u64, group: u64, events: &[u64], rules: Rules) -> Vec<Vec<u64>> {
        let mut cutter = Cutter::default();
        let mut clips: Vec<Vec<u64>> = Vec::new();
        for n in 0..frames {
            let unit = Unit { time: 10 * n, key: n.is_multiple_of(group), bytes: 10, data: n };
            for action in cutter.take(unit, events.contains(&n).then_some(()), rules, true) {
                match action {
                    Action::Begin { units, .. } => clips.push(units.iter().map(|unit| unit.data).collect()),
                    Action::Push(unit) => clips.last_mut().unwrap().push(unit.data),
                    Action::End => {}
                }
            }
        }
        clips
    }

    #[test]
    fn a_clip_is_the_moment_with_what_was_before_and_after() {
        assert_eq!(cut(100, 1, &[50], RULES), [(45..=53).collect::<Vec<_>>()], "each frame is a key frame: exact");
        assert_eq!(cut(100, 10, &[50], RULES), [(40..=53).collect::<Vec<_>>()], "from a key frame on");
        assert_eq!(cut(100, 10, &[2], RULES), [(0..=5).collect::<Vec<_>>()], "there was no more before");
        assert_eq!(cut(100, 10, &[50, 53, 56], RULES), [(40..=59).collect::<Vec<_>>()], "one while it goes on");
        assert_eq!(cut(100, 10, &[20, 25], RULES), [(10..=23).collect::<Vec<_>>(), (20..=28).collect()], "two");
        assert_eq!(cut(100, 1, &[50], Rules { pre: 0, post: 0, ..RULES }), [[50]]);
    }

    #[test]
    fn a_long_clip_is_followed_by_the_next_without_a_gap() {
        let all: Vec<u64> = (0..100).collect();
        let clips = cut(100, 10, &all, Rules { longest: 250, ..RULES });
        assert_eq!(clips.iter().map(Vec::len).collect::<Vec<_>>(), [20; 5]);
        assert_eq!(clips.concat(), all);
        let clips = cut(100, 1, &all, Rules { longest: 250, ..RULES });
        assert_eq!(clips.iter().map(Vec::len).collect::<Vec<_>>(), [25; 4]);
    }

    #[test]
    fn a_stream_whose_time_runs_back_is_another() {
        let mut cutter = Cutter::default();
        let mut take = |time: u64, event| {
            cutter.take(Unit { time, key: true, bytes: 1, data: time }, Some(()).filter(|()| event), RULES, true)
        };
        take(100, false);
        assert!(matches!(&take(110, true)[..], [Action::Begin { units, .. }] if units.len() == 2));
        assert_eq!(take(20, false), [Action::End]);
        assert!(matches!(&take(30, true)[..], [Action::Begin { units, .. }] if units.len() == 2));
    }

    #[test]
    fn a_clip_that_was_given_up_is_tried_again_with_what_is_left_of_its_beginning() {
        let mut cutter = Cutter::default();
        let mut take = |time: u64, event, may| {
            cutter.take(Unit { time, key: true, bytes: 1, data: time }, Some(()).filter(|()| event), RULES, may)
        };
        (0..10).for_each(|n| drop(take(10 * n, false, true)));
        assert_eq!(take(100, true, false), []);
        assert_eq!(take(110, false, false), []);
        let [Action::Begin { units, cause, .. }] = &take(120, false, true)[..] else { panic!("no clip") };
        assert_eq!((units[0].time, units.last().unwrap().time, cause.moment), (60, 120, 100));
    }

    proptest! {
        /// Whatever comes: clips begin with a key frame and have no gap, every event is in one, with `pre` before it where memory allows,
        /// and what is in memory stays within its limit.
        #[test]
        fn no_event_is_missed(
            frames in prop::collection::vec((1u64..30, prop::bool::weighted(0.3), prop::bool::weighted(0.1), 1usize..50), 1..150),
            pre in 0u64..100, post in 0u64..60, longest in 50u64..400, memory in 20usize..2000,
        ) {
            let rules = Rules { pre, post, longest, memory };
            let (mut cutter, mut time, mut clips, mut open) = (Cutter::default(), 0, Vec::<Vec<usize>>::new(), false);
            let mut times = Vec::new();
            for (n, &(step, key, event, bytes)) in frames.iter().enumerate() {
                time += step;
                times.push(time);
                let before = (cutter.kept(), cutter.groups.iter().any(|group| group[0].time + pre <= time));
                let unit = Unit { time, key: key || n == 0, bytes, data: n };
                for action in cutter.take(unit, event.then_some(n), rules, true) {
                    match action {
                        Action::Begin { units, cause, continues } => {
                            prop_assert!(!open && units[0].key && units.last().unwrap().data == n);
                            if !continues && cause.at == time && clips.last().is_none_or(|last| last.last() != Some(&(n - 1))) {
                                let had = cause.moment - units[0].time;
                                prop_assert!(had >= pre || !before.1, "{had} of {pre}");
                            }
                            clips.push(units.iter().map(|unit| unit.data).collect());
                            open = true;
                        }
                        Action::Push(unit) => {
                            prop_assert!(open);
                            clips.last_mut().unwrap().push(unit.data);
                        }
                        Action::End => {
                            prop_assert!(open);
                            open = false;
                        }
                    }
                }
                prop_assert!(cutter.bytes <= memory);
                prop_assert_eq!(cutter.bytes, cutter.groups.iter().flatten().map(|unit| unit.bytes).sum::<usize>());
                let kept = event && cutter.groups.is_empty() && !open; // one group larger than the memory: nothing to begin with
                prop_assert!(!event || kept || clips.iter().any(|clip| clip.contains(&n)), "{n}");
            }
            for clip in &clips {
                prop_assert!(clip.windows(2).all(|pair| pair[1] == pair[0] + 1), "{clip:?}");
            }
        }
    }
}
