//! What the threads of a lane share things with. Under `--cfg polyraft_shuttle` these are models of the same things, and a
//! scheduler decides at each use who goes on. Must never offer more than both have.

#[cfg(not(polyraft_shuttle))]
pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
#[cfg(not(polyraft_shuttle))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[cfg(polyraft_shuttle)]
pub(crate) use modelled::{Condvar, Mutex, MutexGuard, RwLock};
#[cfg(polyraft_shuttle)]
pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Shuttle's locks with the interface of `parking_lot`: no poisoning, and a wait borrows the guard.
#[cfg(polyraft_shuttle)]
mod modelled {
    use std::ops::{Deref, DerefMut};
    use std::time::Duration;

    use shuttle::{sync, thread};

    /// A panic ends the whole execution, so nobody ever sees a poisoned lock.
    const NOT_POISONED: &str = "no thread panicked";

    #[derive(Default)]
    pub(crate) struct Mutex<T>(sync::Mutex<T>);

    pub(crate) struct MutexGuard<'a, T> {
        mutex: &'a sync::Mutex<T>,
        /// `None` only while its thread waits.
        held: Option<sync::MutexGuard<'a, T>>,
    }

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard {
                mutex: &self.0,
                held: Some(self.0.lock().expect(NOT_POISONED)),
            }
        }

        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            Some(MutexGuard {
                mutex: &self.0,
                held: Some(self.0.try_lock().ok()?),
            })
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.held.as_ref().expect("the lock is held")
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.held.as_mut().expect("the lock is held")
        }
    }

    #[derive(Default)]
    pub(crate) struct Condvar(sync::Condvar);

    impl Condvar {
        pub(crate) fn new() -> Self {
            Self::default()
        }

        pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            let held = guard.held.take().expect("the lock is held");
            guard.held = Some(self.0.wait(held).expect(NOT_POISONED));
        }

        /// Time passes at any speed in a model: here the timeout is over once others had a chance to run.
        /// Says so, as the real one does.
        pub(crate) fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _: Duration) -> bool {
            guard.held = None;
            thread::yield_now();
            guard.held = Some(guard.mutex.lock().expect(NOT_POISONED));
            true
        }

        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    #[derive(Default)]
    pub(crate) struct RwLock<T>(sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(sync::RwLock::new(value))
        }

        pub(crate) fn read(&self) -> sync::RwLockReadGuard<'_, T> {
            self.0.read().expect(NOT_POISONED)
        }

        pub(crate) fn write(&self) -> sync::RwLockWriteGuard<'_, T> {
            self.0.write().expect(NOT_POISONED)
        }
    }
}
