//! Small cases in every interleaving of at most three preemptions, by loom; with deliberate faults, too, which they must notice:
//! `RUSTFLAGS='--cfg polyraft_loom --cfg polyraft_mutants' cargo test -p polyraft --lib mailbox`.
//! A wake-up that is lost shows as a deadlock. Nothing here may depend on time.

use loom::thread;

use super::*;

/// Tries all interleavings in which threads are interrupted at most three times where they could have run on.
fn explore(case: impl Fn() + Send + Sync + 'static) {
    #[cfg(polyraft_mutants)]
    faults::switch_on();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(case);
}

fn sends(sender: &Sender<(u8, u8)>, thread: u8, messages: u8) -> thread::JoinHandle<()> {
    let sender = sender.clone();
    thread::spawn(move || (0..messages).for_each(|number| sender.send((thread, number))))
}

/// Checks that each sender's messages come once and in order.
#[derive(Default)]
struct Seen([u8; 2]);

impl Seen {
    fn note(&mut self, (thread, number): (u8, u8)) {
        let next = &mut self.0[usize::from(thread)];
        assert_eq!(*next, number, "of thread {thread}");
        *next += 1;
    }
}

#[test]
fn every_message_wakes_the_owner() {
    explore(|| {
        let (sender, mailbox) = mailbox();
        let thread = sends(&sender, 0, 3);
        let mut seen = Seen::default();
        (0..3).for_each(|_| seen.note(mailbox.take(None).unwrap()));
        thread.join().unwrap();
        assert_eq!(mailbox.try_take(), None);
    });
}

#[test]
fn messages_of_two_senders_come_once_and_in_order() {
    explore(|| {
        let (sender, mailbox) = mailbox();
        let threads = [sends(&sender, 0, 2), sends(&sender, 1, 1)];
        let mut seen = Seen::default();
        (0..3).for_each(|_| seen.note(mailbox.take(None).unwrap()));
        assert_eq!(seen.0, [2, 1]);
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(mailbox.try_take(), None);
    });
}

#[test]
fn a_wait_that_times_out_loses_nothing() {
    explore(|| {
        let (sender, mailbox) = mailbox();
        let thread = sends(&sender, 0, 2);
        let mut seen = Seen::default();
        let early = mailbox.take(Some(Duration::ZERO));
        let left = 2 - early.iter().count();
        early.into_iter().for_each(|message| seen.note(message));
        (0..left).for_each(|_| seen.note(mailbox.take(None).unwrap()));
        thread.join().unwrap();
    });
}

#[test]
fn a_wait_lasts_until_a_message_is_there_and_leaves_it() {
    explore(|| {
        let (sender, mailbox) = mailbox();
        let thread = sends(&sender, 0, 2);
        mailbox.wait();
        assert_eq!(mailbox.try_take(), Some((0, 0)));
        mailbox.wait();
        assert!(!sender.is_empty());
        assert_eq!(mailbox.try_take(), Some((0, 1)));
        thread.join().unwrap();
    });
}

#[test]
fn a_rest_lasts_until_a_pressing_message_is_there() {
    explore(|| {
        let (sender, mailbox) = mailbox();
        let thread = thread::spawn(move || {
            sender.send(0);
            sender.press(1);
        });
        mailbox.rest(Duration::MAX);
        assert_eq!([mailbox.try_take(), mailbox.try_take()], [Some(0), Some(1)]);
        thread.join().unwrap();
    });
}

#[test]
fn a_rest_that_ends_early_loses_nothing() {
    explore(|| {
        let (sender, mailbox) = mailbox();
        let thread = thread::spawn(move || {
            sender.press((0, 0));
            sender.send((0, 1));
        });
        let mut seen = Seen::default();
        mailbox.rest(Duration::ZERO);
        seen.note(mailbox.take(None).unwrap());
        mailbox.rest(Duration::ZERO);
        seen.note(mailbox.take(None).unwrap());
        thread.join().unwrap();
    });
}

#[test]
fn what_is_sent_to_a_mailbox_that_goes_is_dropped() {
    explore(|| {
        let (sender, mailbox) = mailbox();
        let message = Arc::new(());
        let threads = [(); 2].map(|()| {
            let (sender, message) = (sender.clone(), Arc::clone(&message));
            thread::spawn(move || sender.send(message))
        });
        drop(mailbox.try_take());
        drop(mailbox);
        threads.into_iter().for_each(|t| t.join().unwrap());
        // The queue still exists, because a sender does.
        assert_eq!(Arc::strong_count(&message), 1);
        drop(sender);
    });
}

#[cfg(polyraft_mutants)]
mod faults {
    use std::process::Command;

    use super::*;

    /// The fault that a process of these tests is to run with.
    const FAULT: &str = "POLYRAFT_FAULT_OF_THE_INBOX";

    /// Switches on what this process was started for. All threads of a case run on the one that starts it.
    pub(super) fn switch_on() {
        let wanted = std::env::var(FAULT).unwrap_or_default();
        let known = [Mutant::WakeBeforePush, Mutant::WakeUnfenced];
        mutants::set(
            known
                .into_iter()
                .find(|known| format!("{known:?}") == wanted),
        );
    }

    /// Shows that a fault leads to a deadlock. That ends the process, because loom can't clean up behind it, so it is another one.
    fn notices(mutant: Mutant) {
        let case = "mailbox::model::every_message_wakes_the_owner";
        let this = std::env::current_exe().expect("the program of these tests");
        let mut again = Command::new(this);
        again.args(["--exact", case, "--nocapture"]);
        again.env(FAULT, format!("{mutant:?}"));
        let ran = again.output().expect("it can be run again");
        let told = String::from_utf8_lossy(&ran.stderr);
        assert!(
            !ran.status.success() && told.contains("deadlock"),
            "{mutant:?} was not noticed: {told}"
        );
    }

    #[test]
    fn a_wake_up_before_its_message_is_noticed() {
        notices(Mutant::WakeBeforePush);
    }

    #[test]
    fn a_wake_up_that_is_not_ordered_behind_its_message_is_noticed() {
        notices(Mutant::WakeUnfenced);
    }
}
