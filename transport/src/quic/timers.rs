//! The timers of the network's thread: one of the kernel's for all of them.
//!
//! Owns when the thread is woken for the sake of time. It must never be woken for a timer that was
//! put off: those of a link are with every packet, and tokio's wheel wakes the thread at their old
//! place and on the way from its coarse to its fine slots.

use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quinn::AsyncTimer;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::Interest;

use super::runtime::register;

/// The moments at which timers fire lie this far apart, so that neighbours fire together.
const GRAIN: Duration = Duration::from_millis(1);

/// All timers of one thread.
#[derive(Debug)]
pub(super) struct Timers {
    clock: OwnedFd,
    origin: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// One a link: a handful, so that looking at all of them costs nothing.
    timers: Vec<Entry>,
    next_id: u64,
    /// What the kernel's timer is set to.
    armed: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    at: Instant,
    /// Whoever has looked and found that it is too early.
    waker: Option<Waker>,
}

impl Timers {
    pub fn new() -> io::Result<Arc<Timers>> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Arc::new(Timers {
            clock: timerfd_create(TimerfdClockId::Monotonic, flags)?,
            origin: Instant::now(),
            state: Mutex::default(),
        }))
    }

    /// A new timer.
    pub fn timer(self: &Arc<Self>, at: Instant) -> Timer {
        let mut state = self.state.lock();
        state.next_id += 1;
        let id = state.next_id;
        let (at, waker) = (self.on_the_grain(at), None);
        state.timers.push(Entry { id, at, waker });
        drop(state);
        Timer {
            id,
            timers: Arc::clone(self),
        }
    }

    /// Has the kernel wake the thread when the first timer is due, and not before. To be called before the thread sleeps.
    pub fn arm(&self) {
        self.set(&mut self.state.lock());
    }

    /// A timer is waited for. A thread that is busy does not sleep for a long time, and has to hear of it all the same.
    fn arm_for(&self, at: Instant, state: &mut State) {
        if state.armed.is_none_or(|armed| at < armed) {
            self.set(state);
        }
    }

    fn set(&self, state: &mut State) {
        let waiting = state.timers.iter().filter(|timer| timer.waker.is_some());
        let first = waiting.map(|timer| timer.at).min();
        if first == state.armed {
            return;
        }
        // Zero would switch the timer off.
        let wait = first.map_or(Duration::ZERO, |at| {
            at.saturating_duration_since(Instant::now())
                .max(Duration::from_nanos(1))
        });
        let never = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let once = Itimerspec {
            it_interval: never,
            it_value: Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: wait.subsec_nanos().into(),
            },
        };
        match timerfd_settime(&self.clock, TimerfdTimerFlags::empty(), &once) {
            Ok(_) => state.armed = first,
            Err(error) => tracing::error!(%error, "a timer of the network can't be set"),
        }
    }

    /// Wakes whoever waits for a timer that is due; ends only with an error.
    pub async fn run(&self) -> io::Error {
        let clock = match self
            .clock
            .try_clone()
            .and_then(|clock| register(clock, Interest::READABLE))
        {
            Ok(clock) => clock,
            Err(error) => return error,
        };
        poll_fn(|cx| {
            loop {
                // Each expiry is news to epoll, whether or not the last one was read.
                match ready!(clock.poll_read_ready(cx)) {
                    Ok(mut fired) => fired.clear_ready(),
                    Err(error) => return Poll::Ready(error),
                }
                self.fire(Instant::now());
            }
        })
        .await
    }

    fn fire(&self, now: Instant) {
        let mut state = self.state.lock();
        state.armed = None;
        for timer in state.timers.iter_mut().filter(|timer| timer.at <= now) {
            if let Some(waker) = timer.waker.take() {
                waker.wake();
            }
        }
        self.set(&mut state);
    }

    /// The first moment of the grid at or after `at`.
    fn on_the_grain(&self, at: Instant) -> Instant {
        let passed = at.saturating_duration_since(self.origin).as_nanos();
        let grains = passed.div_ceil(GRAIN.as_nanos());
        self.origin + Duration::from_millis(u64::try_from(grains).unwrap_or(u64::MAX))
    }
}

/// One of them, which leaves when it is dropped.
#[derive(Debug)]
pub(super) struct Timer {
    id: u64,
    timers: Arc<Timers>,
}

impl Timer {
    /// Changes the timer; the moment at which it is to fire from now on, if somebody waits for that.
    fn change(&self, change: impl FnOnce(&mut Entry)) -> Option<Instant> {
        let mut state = self.timers.state.lock();
        let own = state.timers.iter_mut().find(|entry| entry.id == self.id);
        let own = own.expect("a timer is in the list as long as it lives");
        change(own);
        let waits_for = own.waker.as_ref().map(|_| own.at)?;
        self.timers.arm_for(waits_for, &mut state);
        Some(waits_for)
    }
}

impl AsyncTimer for Timer {
    fn reset(self: Pin<&mut Self>, at: Instant) {
        let at = self.timers.on_the_grain(at);
        self.change(|entry| entry.at = at);
    }

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        let waits_for = self.change(|entry| match &mut entry.waker {
            waker if entry.at <= now => *waker = None,
            Some(waker) => waker.clone_from(cx.waker()),
            waker => *waker = Some(cx.waker().clone()),
        });
        match waits_for {
            Some(_) => Poll::Pending,
            None => Poll::Ready(()),
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let mut state = self.timers.state.lock();
        state.timers.retain(|entry| entry.id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::Future;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Runs on a runtime like the network's, with the timers armed whenever it sleeps.
    fn with_timers<T, F: Future<Output = T>>(run: impl FnOnce(Arc<Timers>) -> F) -> T {
        let timers = Timers::new().unwrap();
        let armed = Arc::clone(&timers);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .on_thread_park(move || armed.arm())
            .build()
            .unwrap();
        runtime.block_on(async {
            let own = Arc::clone(&timers);
            tokio::spawn(async move { own.run().await });
            run(timers).await
        })
    }

    async fn fires(timer: &mut Timer) {
        let mut timer = Pin::new(timer);
        poll_fn(|cx| timer.as_mut().poll(cx)).await;
    }

    #[test]
    fn a_timer_fires_when_it_was_last_set_to_and_not_before() {
        with_timers(async |timers| {
            let start = Instant::now();
            let ms = |ms| start + Duration::from_millis(ms);
            let mut timer = timers.timer(ms(3_600_000));
            Pin::new(&mut timer).reset(ms(2));
            fires(&mut timer).await;
            assert!(Instant::now() >= ms(2));
            // Put off while the kernel's timer is set to the earlier moment.
            Pin::new(&mut timer).reset(ms(4));
            tokio::task::yield_now().await;
            Pin::new(&mut timer).reset(ms(9));
            fires(&mut timer).await;
            assert!(Instant::now() >= ms(9));
        });
    }

    #[test]
    fn timers_fire_in_their_order_whatever_the_order_of_their_making() {
        with_timers(async |timers| {
            let start = Instant::now();
            let order = Cell::new(Vec::new());
            let waits = [15u64, 3, 9].map(|wait| {
                let mut timer = timers.timer(start + Duration::from_millis(wait));
                let order = &order;
                async move {
                    fires(&mut timer).await;
                    let mut seen = order.take();
                    seen.push(wait);
                    order.set(seen);
                }
            });
            let [first, second, third] = waits;
            tokio::join!(first, second, third);
            assert_eq!(order.take(), [3, 9, 15]);
        });
    }

    /// Keeps the thread from sleeping, until something has happened or the test has failed.
    async fn busy_until(is: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let never_idle = poll_fn(|cx| {
            if is() || Instant::now() > deadline {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        });
        never_idle.await;
        assert!(is(), "a timer did not fire while the thread was busy");
    }

    #[test]
    fn timers_fire_on_a_thread_that_never_sleeps() {
        with_timers(async |timers| {
            let fired = Arc::new(AtomicUsize::new(0));
            let start = |wait: u64| {
                let mut timer = timers.timer(Instant::now() + Duration::from_millis(wait));
                let fired = Arc::clone(&fired);
                tokio::spawn(async move {
                    fires(&mut timer).await;
                    fired.fetch_add(1, Ordering::Relaxed);
                });
            };
            // The second and the third are waited for when the first one fires.
            [2, 4, 3_600_000].into_iter().for_each(start);
            busy_until(|| fired.load(Ordering::Relaxed) == 2).await;
            // Earlier than what the kernel's timer is set to.
            start(2);
            busy_until(|| fired.load(Ordering::Relaxed) == 3).await;
        });
    }

    #[test]
    fn a_timer_that_is_gone_or_that_nobody_waits_for_arms_nothing() {
        let timers = Timers::new().unwrap();
        let soon = Instant::now() + Duration::from_secs(60);
        let mut timer = timers.timer(soon);
        timers.arm();
        assert_eq!(timers.state.lock().armed, None);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut timer).poll(&mut cx).is_pending());
        timers.arm();
        assert!(timers.state.lock().armed.is_some_and(|at| at >= soon));
        drop(timer);
        timers.arm();
        assert_eq!(timers.state.lock().armed, None);
    }
}
