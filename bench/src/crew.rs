//! The threads of a load generator, told what to do and watched together. It knows nothing of what they send.

use crate::control::{Control, Goal};
use anyhow::{Result, anyhow, bail};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Threads that end with a `T`, each with the `S` that it shares with the command. Dropping it ends them.
#[derive(Debug)]
pub struct Crew<S: AsRef<Control>, T> {
    members: Vec<(Arc<S>, Option<JoinHandle<T>>)>,
}

impl<S: AsRef<Control>, T: Send + 'static> Crew<S, T> {
    /// Nobody yet.
    pub fn new() -> Self {
        Self {
            members: Vec::new(),
        }
    }

    /// Starts one more thread, which runs until its control says that it is to end.
    pub fn start(
        &mut self,
        shared: Arc<S>,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> Result<()> {
        let name = format!("load-{}", self.members.len());
        let thread = std::thread::Builder::new().name(name).spawn(run)?;
        self.members.push((shared, Some(thread)));
        Ok(())
    }

    /// What is shared with each of them.
    pub fn shared(&self) -> impl Iterator<Item = &Arc<S>> {
        self.members.iter().map(|(shared, _)| shared)
    }

    /// Fails if one of them has seen something that must not happen, or panicked.
    pub fn check(&self) -> Result<()> {
        for (shared, thread) in &self.members {
            let control = (**shared).as_ref();
            if let Some(fault) = control.fault() {
                bail!("the load saw: {fault}");
            }
            if thread.as_ref().is_some_and(JoinHandle::is_finished) && control.goal() != Goal::End {
                bail!("a load thread panicked");
            }
        }
        Ok(())
    }

    /// Lets them send again after a rest.
    pub fn resume(&self) {
        self.tell(Goal::Run);
    }

    /// Stops sending and waits until nothing is in flight, but for no longer than `limit`.
    pub async fn rest(&self, limit: Duration) -> Result<()> {
        self.tell(Goal::Rest);
        let deadline = Instant::now() + limit;
        while !self.shared().all(|shared| (**shared).as_ref().is_resting()) {
            self.check()?;
            if Instant::now() > deadline {
                bail!(
                    "what is in flight has no answer after {} s",
                    limit.as_secs()
                );
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.check()
    }

    /// Ends all of them, whatever is in flight, and returns what they ended with. What they shared stays.
    pub fn end(&mut self) -> Result<Vec<T>> {
        self.tell(Goal::End);
        let threads = self
            .members
            .iter_mut()
            .filter_map(|(_, thread)| thread.take());
        let ended: Vec<_> = threads.map(JoinHandle::join).collect();
        let ended = ended.into_iter().collect::<Result<_, _>>();
        ended.map_err(|_| anyhow!("a load thread panicked"))
    }

    fn tell(&self, goal: Goal) {
        for shared in self.shared() {
            (**shared).as_ref().set_goal(goal);
        }
    }
}

impl<S: AsRef<Control>, T> Drop for Crew<S, T> {
    fn drop(&mut self) {
        for (shared, _) in &self.members {
            (**shared).as_ref().set_goal(Goal::End);
        }
        for (_, thread) in &mut self.members {
            // One that panicked was reported by `check`, or the command has failed for another reason.
            let _ = thread.take().map(JoinHandle::join);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Hand(Control);

    impl AsRef<Control> for Hand {
        fn as_ref(&self) -> &Control {
            &self.0
        }
    }

    fn crew(count: u64, work: fn(&Control)) -> Crew<Hand, u64> {
        let mut crew = Crew::new();
        for number in 0..count {
            let hand = Arc::new(Hand(Control::new()));
            let run = {
                let hand = Arc::clone(&hand);
                move || {
                    while hand.0.goal() != Goal::End {
                        work(&hand.0);
                        hand.0.rest();
                    }
                    number
                }
            };
            crew.start(hand, run).unwrap();
        }
        crew
    }

    #[tokio::test]
    async fn all_rest_and_end_together() {
        let mut crew = crew(3, |_| {});
        crew.rest(Duration::from_secs(60)).await.unwrap();
        assert!(crew.shared().all(|hand| hand.0.is_resting()));
        crew.resume();
        assert!(crew.shared().all(|hand| hand.0.goal() == Goal::Run));
        assert_eq!(crew.end().unwrap(), [0, 1, 2]);
        crew.check().unwrap();
    }

    #[tokio::test]
    async fn what_one_of_them_saw_fails_all() {
        let crew = crew(2, |control| control.fail("a ghost".to_owned()));
        let error = crew.rest(Duration::from_secs(60)).await.unwrap_err();
        assert!(error.to_string().contains("a ghost"), "{error}");
    }

    #[tokio::test]
    async fn a_thread_that_panics_is_missed() {
        let mut crew = crew(1, |_| panic!("asked to"));
        let error = crew.rest(Duration::from_secs(60)).await.unwrap_err();
        assert!(error.to_string().contains("panicked"), "{error}");
        assert!(crew.end().is_err());
    }
}
