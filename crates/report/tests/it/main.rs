//! What a report shows of runs made by hand.
#![allow(clippy::unwrap_used)]

mod columns;
mod files;
mod page;
mod paper;
mod plots;
mod support;
mod svg;
mod tables;
