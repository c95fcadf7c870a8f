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
