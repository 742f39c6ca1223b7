//! What this machine can do at best, measured in the same run: the limits of the workloads are made of it.

use std::io::{Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::thread;
use std::time::{Duration, Instant};

use ed25519_dalek::{Signer, SigningKey};
use futures::Stream;
use proto::wire::v1;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use v1::member_client::MemberClient;
use v1::member_server::{Member, MemberServer};

use crate::failure::Failure;

/// How long each figure is measured.
const EACH: Duration = Duration::from_millis(400);
/// Writes of which the median is told.
const SYNCS: usize = 200;
/// A page, which is what the smallest write costs.
const PAGE_BYTES: usize = 4096;
/// A payment's record with its share of everything around it.
const RECORD_BYTES: usize = 200;
/// Records of a group: what a flush holds at peak where payments come in frames.
const GROUP: usize = 4096;
/// Messages to an answer of the echo.
const ANSWER_EVERY: u64 = 64;
/// Messages ahead of the answers.
const AHEAD: u64 = 1024;

/// The figures.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Cores that this process may use.
    pub cores: usize,
    /// Signing 32 bytes, processor time with all cores at it.
    pub ed25519_sign_us: f64,
    /// Checking a signature over 32 bytes by the strict rule, the key decompressed before; as above.
    pub ed25519_verify_strict_us: f64,
    /// Hashing 32 bytes; as above.
    pub sha256_ns: f64,
    /// Overwriting a page of a file and having it on the disk, the median.
    pub fdatasync_us: f64,
    /// Records of 200 bytes in groups of 4096, each group on the disk before the next.
    pub append_records_per_s: f64,
    /// Messages of a payment's size through gRPC streams with both ends on this machine, if all cores did nothing else:
    /// by processor time.
    pub grpc_messages_per_s: f64,
}

impl Machine {
    /// Measures; files are made in `folder` and removed again.
    pub async fn measure(folder: &Path) -> Result<Machine, Failure> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let key = SigningKey::from_bytes(&[7; 32]);
        let message = [3; 32];
        let signature = key.sign(&message);
        let public = key.verifying_key();
        let (sign, verify, sha256) = tokio::task::spawn_blocking(move || {
            let sign = time_each(cores, || {
                std::hint::black_box(key.sign(std::hint::black_box(&message)));
            });
            let verify = time_each(cores, || {
                let good = public.verify_strict(std::hint::black_box(&message), std::hint::black_box(&signature));
                assert!(std::hint::black_box(good).is_ok(), "our own signature is good");
            });
            let sha256 = time_each(cores, || {
                std::hint::black_box(Sha256::digest(std::hint::black_box(message)));
            });
            (sign, verify, sha256)
        })
        .await
        .map_err(Failure::other)?;
        let file = folder.join("machine");
        let at = file.clone();
        let (fdatasync, append) =
            tokio::task::spawn_blocking(move || Ok::<_, std::io::Error>((fdatasync(&at)?, append(&at)?)))
                .await
                .map_err(Failure::other)??;
        std::fs::remove_file(&file)?;
        Ok(Machine {
            cores,
            ed25519_sign_us: micros(sign),
            ed25519_verify_strict_us: micros(verify),
            sha256_ns: (sha256 * 1e10).round() / 10.0,
            fdatasync_us: micros(fdatasync),
            append_records_per_s: append.round(),
            grpc_messages_per_s: grpc(cores).await?.round(),
        })
    }
}

/// Seconds of processor time that one call takes while every core makes calls: cores may share what they are made of,
/// and other programs that take turns with this one must not count.
fn time_each(cores: usize, work: impl Fn() + Sync) -> f64 {
    let cpu = || cpu_s(ClockId::ThreadCPUTime);
    let one = || {
        let (began, began_cpu, mut calls) = (Instant::now(), cpu(), 0u32);
        while began.elapsed() < EACH {
            for _ in 0..16 {
                work();
            }
            calls += 16;
        }
        (cpu() - began_cpu) / f64::from(calls)
    };
    let times: Vec<f64> = thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|t| t.join().expect("measuring does not panic")).collect()
    });
    times.iter().sum::<f64>() / times.len() as f64
}

fn cpu_s(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// A file of zeros, so that writing to it changes no metadata.
fn prepared(path: &Path, bytes: usize) -> std::io::Result<std::fs::File> {
    let mut file = std::fs::File::create(path)?;
    file.write_all(&vec![0; bytes])?;
    file.sync_all()?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

fn fdatasync(path: &Path) -> std::io::Result<f64> {
    let mut file = prepared(path, SYNCS * PAGE_BYTES)?;
    let mut times = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        let began = Instant::now();
        file.write_all(&[1; PAGE_BYTES])?;
        file.sync_data()?;
        times.push(began.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[SYNCS / 2])
}

fn append(path: &Path) -> std::io::Result<f64> {
    const GROUPS_MAX: usize = 100;
    let group = vec![1; RECORD_BYTES * GROUP];
    let mut file = prepared(path, GROUPS_MAX * group.len())?;
    let (began, mut groups) = (Instant::now(), 0);
    while groups < GROUPS_MAX && began.elapsed() < EACH {
        file.write_all(&group)?;
        file.sync_data()?;
        groups += 1;
    }
    Ok((groups * GROUP) as f64 / began.elapsed().as_secs_f64())
}

/// Messages that all cores could pass on in a second, from one stream a core with both ends in this process.
async fn grpc(cores: usize) -> Result<f64, Failure> {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let address = listener.local_addr()?;
    let server = tonic::transport::Server::builder().tcp_nodelay(true).add_service(MemberServer::new(Echo));
    let server = tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let began = cpu_s(ClockId::ProcessCPUTime);
    let clients = (0..cores).map(|_| tokio::spawn(pump(format!("http://{address}"))));
    let counts = futures::future::try_join_all(clients).await.map_err(Failure::other)?;
    let took = cpu_s(ClockId::ProcessCPUTime) - began;
    server.abort();
    let counts = counts.into_iter().collect::<Result<Vec<u64>, Status>>();
    let messages: u64 = counts.map_err(|e| Failure::other(format!("the echo failed: {e}")))?.iter().sum();
    Ok(cores as f64 * messages as f64 / took)
}

/// Sends for a while; gives the messages that were answered.
async fn pump(url: String) -> Result<u64, Status> {
    let mut client = MemberClient::connect(url).await.map_err(|e| Status::unavailable(e.to_string()))?;
    let (out, outgoing) = mpsc::unbounded_channel();
    let mut answers = client.session(UnboundedReceiverStream::new(outgoing)).await?.into_inner();
    let payment = v1::Payment {
        id: vec![1; 16].into(),
        payee: vec![2; 32].into(),
        amount: vec![3; 16].into(),
        fee: vec![4; 16].into(),
        note: Default::default(),
    };
    let frame = v1::Frame {
        tag: 1,
        asset: vec![5; 20].into(),
        lane: 0,
        payments: vec![payment],
        cumulative: vec![6; 16].into(),
        memo: vec![7; 32].into(),
        signature: vec![8; 64].into(),
    };
    let message = v1::ClientMessage { kind: Some(v1::client_message::Kind::Frame(frame)) };
    let (began, mut sent, mut answered) = (Instant::now(), 0, 0);
    while began.elapsed() < EACH {
        while sent < answered + AHEAD {
            let _ = out.send(message.clone());
            sent += 1;
        }
        answers.message().await?.ok_or_else(|| Status::aborted("the echo hung up"))?;
        answered += ANSWER_EVERY;
    }
    Ok(answered)
}

/// The other end: it reads messages and answers one in [`ANSWER_EVERY`].
struct Echo;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Member for Echo {
    type SessionStream = Answers<v1::HubMessage>;
    type EventsStream = Answers<v1::Event>;

    async fn session(
        &self,
        request: Request<Streaming<v1::ClientMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut inbound = request.into_inner();
        let (out, outgoing) = mpsc::channel(64);
        tokio::spawn(async move {
            let mut read = 0;
            while let Ok(Some(_)) = inbound.message().await {
                read += 1;
                if read % ANSWER_EVERY == 0 && out.send(Ok(v1::HubMessage { kind: None })).await.is_err() {
                    break;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn get_info(&self, _: Request<v1::GetInfoRequest>) -> Result<Response<v1::GetInfoResponse>, Status> {
        Err(only_sessions())
    }

    async fn events(&self, _: Request<v1::EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        Err(only_sessions())
    }

    async fn get_payment(&self, _: Request<v1::GetPaymentRequest>) -> Result<Response<v1::GetPaymentResponse>, Status> {
        Err(only_sessions())
    }

    async fn lookup(&self, _: Request<v1::LookupRequest>) -> Result<Response<v1::LookupResponse>, Status> {
        Err(only_sessions())
    }
}

fn only_sessions() -> Status {
    Status::permission_denied("the echo has sessions only")
}

fn micros(seconds: f64) -> f64 {
    (seconds * 1e8).round() / 100.0
}
