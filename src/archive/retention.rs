//! What goes when there is too much: no files and no clock in it.

use std::time::Duration;

use super::name::Kind;

/// How much may be kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Bytes of all files together.
    pub max_size: u64,
    /// Age of a file.
    pub max_age: Duration,
    /// Bytes of the disk that stay free, whoever fills it.
    pub min_free: u64,
}

/// The files of one frame, clip or recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Their class.
    pub kind: Kind,
    /// Milliseconds since 1970.
    pub utc_ms: u64,
    /// Bytes of them together.
    pub size: u64,
}

/// Which of `items` go, so that `coming` bytes more find room where `free` bytes of the disk are free: those that are too old; then, as
/// long as there is too much, class by class those that are missed least, the oldest first.
pub fn excess(items: &[Item], limits: Limits, now_ms: u64, free: u64, coming: u64) -> Vec<usize> {
    let oldest = now_ms.saturating_sub(u64::try_from(limits.max_age.as_millis()).unwrap_or(u64::MAX));
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|&i| (items[i].utc_ms >= oldest, items[i].kind, items[i].utc_ms));
    let mut used: u64 = items.iter().map(|item| item.size).sum();
    let mut free = free;
    let mut gone = Vec::new();
    for i in order {
        let item = &items[i];
        let fits = used.saturating_add(coming) <= limits.max_size && free >= limits.min_free.saturating_add(coming);
        if item.utc_ms >= oldest && fits {
            break;
        }
        used -= item.size;
        free = free.saturating_add(item.size);
        gone.push(i);
    }
    gone
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn items() -> impl Strategy<Value = Vec<Item>> {
        let kind = prop::sample::select(vec![Kind::Sample, Kind::Uninspected, Kind::Warn, Kind::Clip, Kind::Rejected]);
        let item = (kind, 0u64..10_000, 0u64..1000).prop_map(|(kind, utc_ms, size)| Item { kind, utc_ms, size });
        prop::collection::vec(item, 0..40)
    }

    proptest! {
        /// Afterwards every limit is kept, or nothing is left; what goes is missed less, or older, than what stays; and nothing goes
        /// that could have stayed.
        #[test]
        fn limits_are_kept_and_what_is_missed_least_goes_first(
            items in items(), max_size in 0u64..20_000, age in 0u64..12_000, min_free in 0u64..20_000, free in 0u64..30_000, coming in 0u64..3000,
        ) {
            let limits = Limits { max_size, max_age: Duration::from_millis(age), min_free };
            let (now, oldest) = (10_000, 10_000u64.saturating_sub(age));
            let gone = excess(&items, limits, now, free, coming);
            let stays: Vec<&Item> = (0..items.len()).filter(|i| !gone.contains(i)).map(|i| &items[i]).collect();
            let used: u64 = stays.iter().map(|item| item.size).sum();
            let freed: u64 = gone.iter().map(|&i| items[i].size).sum();
            prop_assert!(stays.iter().all(|item| item.utc_ms >= oldest));
            prop_assert!(stays.is_empty() || (used + coming <= max_size && free + freed >= min_free + coming));
            let young: Vec<&Item> = gone.iter().map(|&i| &items[i]).filter(|item| item.utc_ms >= oldest).collect();
            for out in &young {
                prop_assert!(stays.iter().all(|stays| (out.kind, out.utc_ms) <= (stays.kind, stays.utc_ms)));
            }
            if let Some(last) = young.iter().max_by_key(|item| (item.kind, item.utc_ms)) {
                let (used, free) = (used + last.size, free + freed - last.size);
                prop_assert!(used + coming > max_size || free < min_free + coming, "{last:?} went for nothing");
            }
        }
    }
}
