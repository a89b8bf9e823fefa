//! The strategies, a file each.

pub(crate) mod bottom;
pub(crate) mod drop_list;
pub(crate) mod early_exit;
pub(crate) mod every_other;
pub(crate) mod full;
pub(crate) mod middle;
pub(crate) mod random;
pub(crate) mod self_speculative;
pub(crate) mod skip_decode;
pub(crate) mod top;
pub(crate) mod unified;
