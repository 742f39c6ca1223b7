//! The workloads: who pays whom, in which frames, on how many lanes, and what no hub could exceed.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::machine::Machine;

/// What the payers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Workload {
    /// One payment to a signature.
    Signed,
    /// 16 payments to a signature.
    Frames16,
    /// 64 payments to a signature.
    Frames64,
    /// 256 payments to a signature.
    Frames256,
    /// One tick to a message: a hash each, one signature to 2,048.
    Ticks1,
    /// The same over a thousand connections.
    Ticks1Wide,
    /// 64 ticks to a message: as many hashes, and the word of the last.
    TicksPacked,
    /// One channel, whose 64 lanes pay at the same time, one payment to a signature.
    Lanes64,
    /// Frames of 1 to 64 payments on four lanes to anybody and to the hub, with notes and fees.
    Mixed,
}

/// The details of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Whether all members pay, or the first one alone.
    pub payers: Payers,
    /// Lanes that each payer uses.
    pub lanes: usize,
    /// Payments of a frame.
    pub frame: FrameLen,
    /// Who is paid.
    pub payees: Payees,
    /// Frames of all payers together that wait for an answer at peak: enough that the hub never waits for payers.
    pub in_flight: usize,
}

/// Who pays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payers {
    /// As many as the measurement was asked for.
    All,
    /// The first one; the others are idle and connected.
    One,
    /// [`WIDE_CLIENTS`], however many there are otherwise.
    Wide,
}

/// How long frames are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameLen {
    /// All alike.
    Fixed(usize),
    /// [`MIXED`].
    Mixed,
    /// No frame: so many ticks of a stream at once.
    Ticks(u32),
}

/// Who is paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payees {
    /// Everybody pays the next one, for ever.
    Next,
    /// Anybody, another one with each payment, and now and then the hub.
    Anybody,
}

/// Connections of the wide workload.
pub const WIDE_CLIENTS: usize = 1_000;

/// Lengths of the mixed frames; each is as frequent as it stands here.
pub const MIXED: [usize; 8] = [1, 1, 1, 1, 4, 4, 16, 64];

/// Messages that a frame cannot do without: itself, its answer, and the credit to its payee.
const MESSAGES_PER_FRAME: f64 = 3.0;

impl Workload {
    /// All, in the order of the tables.
    pub const ALL: [Workload; 9] = [
        Workload::Signed,
        Workload::Frames16,
        Workload::Frames64,
        Workload::Frames256,
        Workload::Ticks1,
        Workload::Ticks1Wide,
        Workload::TicksPacked,
        Workload::Lanes64,
        Workload::Mixed,
    ];

    /// As `--workload` and the tables have it.
    pub fn name(self) -> &'static str {
        match self {
            Workload::Signed => "signed",
            Workload::Frames16 => "frames_16",
            Workload::Frames64 => "frames_64",
            Workload::Frames256 => "frames_256",
            Workload::Ticks1 => "ticks_1",
            Workload::Ticks1Wide => "ticks_1_1000c",
            Workload::TicksPacked => "ticks_packed",
            Workload::Lanes64 => "lanes_64",
            Workload::Mixed => "mixed",
        }
    }

    /// What it is, in a line.
    pub fn about(self) -> &'static str {
        match self {
            Workload::Signed => "one payment to a signature, every signature checked",
            Workload::Frames16 => "frames of 16 payments to one payee under one signature",
            Workload::Frames64 => "frames of 64 payments to one payee under one signature",
            Workload::Frames256 => "frames of 256 payments to one payee under one signature",
            Workload::Ticks1 => "ticks of a hash chain, one to a message, each verified by a hash",
            Workload::Ticks1Wide => "ticks of a hash chain, one to a message, on 1,000 connections",
            Workload::TicksPacked => "ticks of a hash chain, 64 to a message, each verified by a hash",
            Workload::Lanes64 => "one channel, 64 lanes at the same time, one payment to a signature",
            Workload::Mixed => "frames of 1 to 64 payments on 4 lanes to anybody and to the hub, with notes and fees",
        }
    }

    /// The details.
    pub fn shape(self) -> Shape {
        let frames = |len, in_flight| Shape {
            payers: Payers::All,
            lanes: 1,
            frame: FrameLen::Fixed(len),
            payees: Payees::Next,
            in_flight,
        };
        match self {
            Workload::Signed => frames(1, 2048),
            Workload::Frames16 => frames(16, 1024),
            Workload::Frames64 => frames(64, 512),
            Workload::Frames256 => frames(256, 256),
            Workload::Ticks1 => Shape { frame: FrameLen::Ticks(1), ..frames(1, 16 * 1024) },
            Workload::Ticks1Wide => Shape { frame: FrameLen::Ticks(1), payers: Payers::Wide, ..frames(1, 16 * 1024) },
            Workload::TicksPacked => Shape { frame: FrameLen::Ticks(64), ..frames(64, 4096) },
            Workload::Lanes64 => Shape { payers: Payers::One, lanes: 64, ..frames(1, 512) },
            Workload::Mixed => Shape { lanes: 4, frame: FrameLen::Mixed, payees: Payees::Anybody, ..frames(1, 1024) },
        }
    }

    /// The most payments a second that this machine allows with payers and hub on it, and the formula.
    pub fn limit(self, machine: &Machine) -> (f64, String) {
        let cores = machine.cores as f64;
        let signatures_us = machine.ed25519_sign_us + machine.ed25519_verify_strict_us;
        let frame = self.shape().frame.mean();
        let message_us = 1e6 * cores / machine.grpc_messages_per_s;
        let in_frames = 1e6 * cores / ((signatures_us + MESSAGES_PER_FRAME * message_us) / frame);
        match self {
            Workload::Signed => (1e6 * cores / signatures_us, "cores / (sign + verify_strict)".to_owned()),
            Workload::Lanes64 => (
                (1e6 * cores / signatures_us).min(1e6 / machine.ed25519_verify_strict_us),
                "min(cores / (sign + verify_strict), 1 / verify_strict): one connection is read by one core".to_owned(),
            ),
            Workload::Ticks1 | Workload::Ticks1Wide | Workload::TicksPacked => (
                1e6 * cores / (2.0 * machine.sha256_ns / 1e3 + message_us / frame),
                format!("cores / (2 x sha256 + message / {frame}), message = cores / grpc_messages_per_s"),
            ),
            Workload::Frames16 | Workload::Frames64 | Workload::Frames256 | Workload::Mixed => (
                in_frames.min(machine.append_records_per_s),
                format!(
                    "min({frame} x cores / (sign + verify_strict + {MESSAGES_PER_FRAME} x message), append), \
                     message = cores / grpc_messages_per_s"
                ),
            ),
        }
    }
}

impl FrameLen {
    /// Payments of a frame on average.
    pub fn mean(self) -> f64 {
        match self {
            FrameLen::Fixed(len) => len as f64,
            FrameLen::Ticks(ticks) => f64::from(ticks),
            FrameLen::Mixed => MIXED.iter().sum::<usize>() as f64 / MIXED.len() as f64,
        }
    }
}

impl FromStr for Workload {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Workload::ALL.into_iter().find(|w| w.name() == name);
        known.ok_or_else(|| {
            let names: Vec<&str> = Workload::ALL.iter().map(|w| w.name()).collect();
            format!("there is no workload {name:?}; there are {}", names.join(", "))
        })
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Workload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
