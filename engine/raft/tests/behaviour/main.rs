//! How the core behaves, seen from outside: the Raft paper's rules, scripts, and random clusters. Everything
//! here drives the public interface only.

mod cluster;
mod edges;
#[cfg(polyraft_mutants)]
mod mutants;
mod paper;
mod random;
mod replica;
mod scripts;
mod text;
mod transfer;
