//! The committer: one thread that owns the journal's writer. It makes a flush durable, signs it, and only then lets
//! anything leave. The checkpointer beside it moves rows to the index.

use std::sync::Arc;
use std::sync::mpsc as thread_channel;

use storage::Journal;
use tokio::sync::{mpsc, watch};

use proto::AccountId;

use crate::flushed::Flushed;
use crate::link::Event;
use crate::rows::{Rows, RowsError, Snapshot, encode_record};
use crate::sequencer::{Answer, Command, Done, Flush};

pub(crate) struct Committer {
    pub(crate) journal: Journal,
    pub(crate) rows: Arc<Rows>,
    pub(crate) flushes: thread_channel::Receiver<Flush>,
    pub(crate) done: thread_channel::Sender<Done>,
    pub(crate) queue: mpsc::WeakSender<Command>,
    pub(crate) durable: watch::Sender<u64>,
    pub(crate) agreed: mpsc::UnboundedSender<(AccountId, u64)>,
    pub(crate) checkpoints: thread_channel::Sender<Snapshot>,
    /// The last record as bytes; kept for its room.
    pub(crate) encoded: Vec<u8>,
}

impl Committer {
    /// Runs until the sequencer ends, then marks the journal as cleanly closed. Any error is final: what was not written
    /// was not answered either.
    pub(crate) fn run(mut self) -> Result<(), RowsError> {
        while let Ok(flush) = self.flushes.recv() {
            self.commit(flush)?;
        }
        Ok(self.journal.close()?)
    }

    fn commit(&mut self, flush: Flush) -> Result<(), RowsError> {
        let Flush { sealed, answers, credited, agreed, checkpoint } = flush;
        let Some((record, outcome)) = sealed else {
            self.free(0);
            answers.into_iter().for_each(|answer| tell(answer, None));
            return Ok(());
        };
        let span = tracing::debug_span!("flush", number = record.number, entries = record.entries.len()).entered();
        encode_record(&record, &mut self.encoded);
        let number = self.journal.append(&self.encoded)?;
        assert_eq!(number, record.number, "the books and the journal number flushes alike");
        self.free(self.encoded.len());
        let flushed = self.rows.settle(number, Some(outcome))?;
        self.durable.send_replace(number);
        drop(span);
        answers.into_iter().for_each(|answer| tell(answer, Some(&flushed)));
        for (link, account) in credited {
            link.tell(Event::Credited { flushed: flushed.clone(), account });
        }
        for settlement in agreed {
            // Without anybody to post it, the settlement is posted after the next start.
            let _ = self.agreed.send(settlement);
        }
        if let Some(snapshot) = checkpoint {
            self.rows.begin_words();
            // A checkpointer that failed has stopped the hub.
            let _ = self.checkpoints.send(snapshot);
        }
        Ok(())
    }

    /// The next flush may be sealed and queued while this one is signed and answered.
    fn free(&self, bytes: usize) {
        let _ = self.done.send(Done::Flush { bytes });
        if let Some(queue) = self.queue.upgrade() {
            // A full queue wakes the sequencer as well.
            let _ = queue.try_send(Command::Wake);
        }
    }
}

/// Moves rows to the index, one checkpoint after the other.
pub(crate) fn run_checkpoints(
    rows: &Rows,
    snapshots: &thread_channel::Receiver<Snapshot>,
    done: &thread_channel::Sender<Done>,
) -> Result<(), RowsError> {
    rows.tidy_journal()?;
    while let Ok(snapshot) = snapshots.recv() {
        let span =
            tracing::debug_span!("checkpoint", upto = snapshot.upto, channels = snapshot.channels.len()).entered();
        rows.checkpoint(snapshot)?;
        drop(span);
        let _ = done.send(Done::Checkpoint);
        rows.tidy_journal()?;
    }
    Ok(())
}

fn tell(answer: Answer, flushed: Option<&Arc<Flushed>>) {
    match answer {
        Answer::Accepted { link, asset, tags, ticks } => {
            let flushed = flushed.expect("a flush with an accepted frame has a record").clone();
            link.answer(Event::Accepted { flushed, asset, tags, ticks });
        }
        Answer::Event { link, event } => link.answer(event),
        Answer::News { link, event } => link.tell(event),
        Answer::Then(action) => action(),
    }
}
