//! The strategies, a file each.

pub(crate) mod adaskip;
pub(crate) mod angular;
pub(crate) mod block_influence;
pub(crate) mod bottom;
pub(crate) mod drop_list;
pub(crate) mod early_exit;
pub(crate) mod every_other;
pub(crate) mod full;
pub(crate) mod middle;
pub(crate) mod oracle_depth;
pub(crate) mod oracle_exit;
pub(crate) mod perplexity;
pub(crate) mod position_decay;
pub(crate) mod prompt_depth;
pub(crate) mod random;
pub(crate) mod self_speculative;
pub(crate) mod shallow_deep;
pub(crate) mod skip_decode;
pub(crate) mod sleb;
pub(crate) mod sublayer_drop;
pub(crate) mod top;
pub(crate) mod unified;
