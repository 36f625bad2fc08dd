//! Owns the tests that run the log on a simulated disk. Must never depend on time, threads or the machine.

mod checkpoints;
mod driver;
mod faults;
mod full_disks;
mod lives;
