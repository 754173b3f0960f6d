//! The lists of the configuration, warmed again and again.
//!
//! What must hold: one list at a time, so that they are in nobody's way; the first run comes a while after the start, at another moment in
//! each process, so that machines that start together do not ask together; a list that is changed is run by its new words; a run that
//! fails is told, and the next comes at its time all the same.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::error::Error;
use super::events::{Event, Fate, Report};
use super::list::ImageList;
use super::service::Carry;
use super::settings::Schedule;
use super::warm::WarmOrder;

/// A list is not warmed before a process has served for so long; with the jitter, at most twice as long.
const FIRST_AFTER: Duration = Duration::from_secs(60);
/// Each pause is as long as the list says and up to a tenth more.
const JITTER: f64 = 0.1;

/// When each list is due.
#[derive(Debug, Default)]
struct Timetable {
    lists: Vec<(Schedule, Instant)>,
}

impl Timetable {
    /// Takes the lists that are in force now: known ones keep their time, new ones come soon.
    fn follow(&mut self, schedules: &[Schedule], now: Instant) {
        let before = std::mem::take(&mut self.lists);
        let due = |schedule: &Schedule| {
            let known = before.iter().find(|(known, _)| known == schedule);
            known.map_or_else(|| now + jittered(FIRST_AFTER, 1.0), |(_, due)| *due)
        };
        self.lists = schedules.iter().map(|schedule| (schedule.clone(), due(schedule))).collect();
    }

    /// The list that comes next, and when.
    fn next(&self) -> Option<(usize, Instant)> {
        let each = self.lists.iter().enumerate();
        each.map(|(index, (_, due))| (index, *due)).min_by_key(|(_, due)| *due)
    }

    /// All of them are due.
    fn hurry(&mut self, now: Instant) {
        self.lists.iter_mut().for_each(|(_, due)| *due = now);
    }

    fn done(&mut self, index: usize, now: Instant) {
        if let Some((schedule, due)) = self.lists.get_mut(index) {
            *due = now + jittered(schedule.every, JITTER);
        }
    }
}

/// The time, and up to a share of it more.
fn jittered(time: Duration, share: f64) -> Duration {
    time + time.mul_f64(share * rand::random::<f64>())
}

impl Carry {
    /// Starts what runs by itself. To be called when the program serves.
    pub fn start(&self) {
        self.say_switches();
        let carry = self.clone();
        self.inner().tasks.spawn(async move {
            let shutdown = carry.inner().shutdown.clone();
            tokio::select! {
                () = carry.follow() => {}
                () = shutdown.cancelled() => {}
            }
        });
    }

    /// Makes all lists due now, for tests and for whoever cannot wait.
    pub fn wake(&self) {
        self.inner().hurry.notify_one();
    }

    async fn follow(&self) {
        let mut timetable = Timetable::default();
        let inner = self.inner();
        loop {
            timetable.follow(&inner.settings.load().schedules, Instant::now());
            let Some((index, due)) = timetable.next() else {
                tokio::select! {
                    () = inner.changed.notified() => {}
                    () = inner.hurry.notified() => {}
                }
                continue;
            };
            tokio::select! {
                () = inner.changed.notified() => continue,
                () = inner.hurry.notified() => {
                    timetable.hurry(Instant::now());
                    continue;
                }
                () = sleep_until(due) => {}
            }
            let (schedule, _) = &timetable.lists[index];
            self.warm_list(schedule).await;
            timetable.done(index, Instant::now());
        }
    }

    async fn warm_list(&self, schedule: &Schedule) {
        let order = WarmOrder {
            images: ImageList::of(schedule.images.iter().cloned()),
            platforms: schedule.platforms.clone(),
            all_platforms: false,
            referrers: schedule.referrers,
        };
        let ended = match self.warm(order) {
            Ok(mut job) => {
                let mut first = None;
                loop {
                    match job.next().await {
                        Some(Event::Image { image, fate: Fate::Failed, reason, .. }) => {
                            let reason = reason.unwrap_or_default();
                            first.get_or_insert_with(|| format!("{image}: {reason}"));
                        }
                        Some(Event::Ended(report)) => break Ok((report, first)),
                        Some(_) => {}
                        // The program stops.
                        None => return,
                    }
                }
            }
            Err(error) => Err(error),
        };
        self.tell(ended);
    }

    fn tell(&self, ended: Result<(Report, Option<String>), Error>) {
        let whole = matches!(&ended, Ok((report, _)) if report.is_whole());
        let inner = self.inner();
        inner.metrics.schedule(whole, inner.clock.now());
        match ended {
            Ok((Report { images, failed, objects, bytes, here, .. }, first)) => match first {
                None => tracing::info!(images, objects, bytes, here, "a list was warmed"),
                Some(first) => tracing::warn!(
                    images, failed, objects, bytes, here, %first,
                    "a list was warmed, and not all of it is here"
                ),
            },
            Err(error) => tracing::warn!(%error, "a list could not be warmed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(image: &str, hours: u64) -> Schedule {
        Schedule {
            images: vec![image.to_owned()],
            every: Duration::from_secs(hours * 3600),
            platforms: Vec::new(),
            referrers: false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_list_has_its_time() {
        let (mut table, now) = (Timetable::default(), Instant::now());
        assert_eq!(table.next(), None);
        let (often, seldom) = (schedule("a", 1), schedule("b", 24));
        table.follow(&[often.clone(), seldom.clone()], now);
        for (_, due) in &table.lists {
            assert!(*due >= now + FIRST_AFTER && *due <= now + FIRST_AFTER * 2);
        }
        table.done(0, now);
        table.done(1, now);
        let (first, due) = table.next().unwrap();
        assert_eq!(first, 0);
        assert!(due >= now + often.every && due <= now + often.every.mul_f64(1.1));
        // A reload moves nothing that it does not change.
        let new = schedule("c", 1);
        table.follow(&[seldom, new.clone(), often.clone()], now);
        assert_eq!(table.lists[2], (often, due));
        assert_eq!((table.next().unwrap().0, &table.lists[1].0), (1, &new));
        table.follow(&[], now);
        table.done(0, now);
        assert_eq!(table.next(), None);
        table.follow(&[new], now);
        table.hurry(now);
        assert_eq!(table.next(), Some((0, now)));
    }
}
