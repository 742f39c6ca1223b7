//! Errors of calls as `google.rpc.Status`: a code, a sentence, a word for programs, and when a retry may help.

use std::collections::HashMap;
use std::time::Duration;

use proto::books::Refusal;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The domain of the hub's reasons.
const DOMAIN: &str = "payhub.v1";

/// A refusal that trying again does not help.
pub(crate) fn refused(code: Code, reason: &str, message: &str) -> Status {
    let details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    Status::with_error_details(code, message, details)
}

/// A refusal that may be gone after a while.
pub(crate) fn later(code: Code, reason: &str, message: &str, after: Duration) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    details.set_retry_info(Some(after));
    Status::with_error_details(code, message, details)
}

/// A limit of the hub is reached.
pub(crate) fn exhausted(message: &str) -> Status {
    later(Code::ResourceExhausted, "LIMIT", message, Duration::from_secs(5))
}

pub(crate) fn late() -> Status {
    refused(Code::DeadlineExceeded, "HELLO_LATE", "no valid hello came within 10 seconds of the challenge")
}

pub(crate) fn ended() -> Status {
    let message = "the hub is shutting down or restarting; connect again";
    later(Code::Unavailable, "SHUTTING_DOWN", message, Duration::from_secs(2))
}

pub(crate) fn broken() -> Status {
    refused(Code::Internal, "STORE", "the hub cannot read its store; its operator must act")
}

pub(crate) fn bad_token() -> Status {
    let message = "the token is not one of a live session; open a session and use the token of its Welcome";
    refused(Code::Unauthenticated, "BAD_TOKEN", message)
}

pub(crate) fn malformed(error: &proto::wire::WireError) -> Status {
    refused(Code::InvalidArgument, "MALFORMED", &error.to_string())
}

/// A refusal of the books, for calls of the operator.
pub(crate) fn of_refusal(refusal: &Refusal) -> Status {
    let code = match refusal {
        Refusal::UnknownChannel { .. } => Code::NotFound,
        _ => Code::FailedPrecondition,
    };
    match refusal.is_retryable() {
        true => {
            let after = Duration::from_millis(u64::from(crate::sequencer::retry_after_ms(refusal)));
            later(code, refusal.reason(), &refusal.to_string(), after)
        }
        false => refused(code, refusal.reason(), &refusal.to_string()),
    }
}
