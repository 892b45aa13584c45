//! The agent: what mail servers that do not know Trunkline say, and what becomes of it.

mod payloads;
