//! The whole suite: one binary, a module a subject.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// Equal bits are what many tests ask for, and loops by index read several lists at once.
#![allow(clippy::float_cmp, clippy::needless_range_loop, clippy::needless_for_each)]

mod activation;
mod adamw;
mod balance;
mod benchmark;
mod checkpoint;
mod class_scatter;
mod combine;
mod compare;
mod config;
mod data;
mod declarations;
mod devices;
mod families;
mod files;
mod gallery;
mod gguf;
mod golden;
mod gradients;
mod grads;
mod hierarchies;
mod imaging;
mod interrupt;
mod labels;
mod load;
mod lossless;
mod memory;
mod metrics;
mod models;
mod not_finite;
mod ops;
mod optimizers;
mod parity;
mod partition;
mod pfag;
mod phase1;
mod phase2;
mod real_width;
mod report;
mod results;
mod resume;
mod router_cost;
mod router_fit;
mod routing;
mod settings;
mod slots;
mod smk;
mod taking;
mod tiny;
mod training;
mod upcycle;
mod update_table;
mod variants;
mod verify;
