//! Every bound of the hub by name, with what happens when it is reached.

use std::time::Duration;

/// Commands that wait for the sequencer. Full: sessions wait, and with them their members' connections.
pub(crate) const QUEUE_MAX: usize = 16 * 1024;
/// Commands taken from the queue at once.
pub(crate) const QUEUE_BATCH: usize = 1024;
/// Frames of one session that are not answered yet. Full: the hub stops reading that connection.
pub(crate) const IN_FLIGHT_MAX: usize = 1024;
/// Ticks that are decided as one if they have arrived together, so that others get their turn.
pub(crate) const TICKS_AT_ONCE: usize = 256;
/// Words that are none of their chain before the session ends: each may cost 2,048 hashes, and no honest client sends one.
pub(crate) const WRONG_WORDS_MAX: u32 = 8;
/// Streams that one session may have words checked of: all lanes of as many accounts as a hello may name.
pub(crate) const CHAINS_MAX: usize = 64 * HELLO_ACCOUNTS_MAX;
/// Answers and news that wait for one session. Nearly full: news is dropped and read from the store later.
pub(crate) const EVENTS_MAX: usize = IN_FLIGHT_MAX + 1024;
/// Messages of one session that wait for its connection. Full: the session's writer waits.
pub(crate) const OUTBOX_MAX: usize = 64;
/// Estimated bytes of one flush: small enough that one credit, which may be all of it, fits one message of a member,
/// and a record fits the journal. Full: the sequencer waits for the write under way.
pub(crate) const FLUSH_BYTES_MAX: usize = 2 << 20;
/// Frames of one flush, so that the cost of signing it is bounded.
pub(crate) const FLUSH_FRAMES_MAX: usize = 8192;
/// Orders of a flush from which on the next flush waits for more: fewer are no crowd.
pub(crate) const PACE_FROM: usize = 8;
/// How long a flush in a crowd waits, from the one before it: several times what a write costs, and little beside what
/// anybody notices.
pub(crate) const PACE: Duration = Duration::from_millis(2);
/// Orders of a flush from which on the next one waits for nothing: there is more to do than to wait for.
pub(crate) const PACE_FULL: usize = 512;
/// Answers of one flush, refusals included. Full: as above.
pub(crate) const FLUSH_ANSWERS_MAX: usize = 32 * 1024;
/// Receipts of one answer, about 700 bytes each, so that it fits one message of a member. Full: the flush ends.
pub(crate) const ANSWER_RECEIPTS_MAX: usize = 2048;
/// Flushes read for one page of credits.
pub(crate) const PAGE_FLUSHES_MAX: usize = 512;
/// Most bytes of a message from a member: a frame of 64 KiB and its wrapping.
pub(crate) const INBOUND_BYTES_MAX: usize = proto::frame::BYTES_MAX + 1024;
/// Bytes of credits in one message; one credit alone may be larger.
pub(crate) const PAGE_BYTES_MAX: usize = 512 << 10;
/// Credited messages that a session may be sent before its member opens a window.
pub(crate) const WINDOW_START: u32 = 16;
/// The widest window that a member can open: what he may have to buffer.
pub(crate) const WINDOW_MAX: u32 = 1 << 16;
/// Accounts that a hello may name.
pub(crate) const HELLO_ACCOUNTS_MAX: usize = 64;
/// How long a connection may take to send its first byte, and a session to say a valid hello.
pub(crate) const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Logins under way at a time. Each ends within [`HANDSHAKE_DEADLINE`]; more are refused with a retry hint.
pub(crate) const GREETINGS_MAX: usize = 1024;
/// How long a connection may be silent before it is asked for a sign of life, and how long that may take.
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// See [`KEEPALIVE_INTERVAL`].
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Calls under way on one connection: a client has one session and a few questions, and every answer that is not read
/// may hold megabytes.
pub(crate) const STREAMS_MAX: u32 = 32;
/// Events that wait for one caller; one of them may be a credit as large as a flush.
pub(crate) const EVENTS_OUTBOX_MAX: usize = 4;
/// A checkpoint begins at the latest after this many index entries (about 100 MB of memory)...
pub(crate) const CHECKPOINT_ENTRIES: usize = 1 << 20;
/// ...or this many bytes of journal (seconds of replay)...
pub(crate) const CHECKPOINT_BYTES: usize = 64 << 20;
/// ...or this many flushes, unless configured...
pub(crate) const CHECKPOINT_FLUSHES: u64 = 4096;
/// ...or this long after the last one, if anything was written.
pub(crate) const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(10);
/// Index entries in memory at which the sequencer waits for the checkpoint under way.
pub(crate) const LAG_MAX: usize = 8 << 20;
/// Channels in one page of the operator's list.
pub(crate) const LIST_MAX: usize = 1000;
/// How long a shutdown waits for connections to end after everything was answered.
pub(crate) const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// How long an offer in `GetInfo` is good, seconds.
pub(crate) const OFFER_VALIDITY_S: u64 = 24 * 3600;
/// Free bytes on the store's disk below which no new payments are taken: settlements, acknowledgements and the ledger's
/// news, and the rows of what is in the journal, must still find room.
pub(crate) const LOW_WATER_BYTES: u64 = 256 << 20;
/// How often the free space is looked at.
pub(crate) const SPACE_INTERVAL: Duration = Duration::from_secs(2);
/// Channels that may be awake, some kilobytes each. Above it as many are put to sleep after a flush as are too many.
pub(crate) const AWAKE_MAX: usize = 32 * 1024;
/// Channels that are looked at after each flush whether they may sleep: a few microseconds.
pub(crate) const REST: usize = 32;
