//! A line to a node that can be bad: it cuts, delays, and answers in the node's place, by a seeded plan; and it can keep
//! transactions back, as a relay does.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use payhub_tests::dice::Dice;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Bytes of a request's head at most; longer ones are none of ours.
const HEAD_MAX: usize = 16 * 1024;

/// The line; it ends with this value.
pub(super) struct Line {
    addr: SocketAddr,
    weather: Arc<Weather>,
    task: tokio::task::JoinHandle<()>,
}

struct Weather {
    node: String,
    bad: AtomicBool,
    broken: AtomicU64,
    dice: Mutex<Dice>,
    post: Mutex<Post>,
    refused: AtomicU64,
}

/// What becomes of transactions.
enum Post {
    Passes,
    /// They are kept; nobody hears whether they arrived.
    Kept(Vec<(String, Vec<u8>)>),
    /// What was kept goes to the node right before the next request of that name.
    Before(&'static str, Vec<(String, Vec<u8>)>),
    /// The node wants none.
    Refused,
}

/// How a transaction is sent.
const SEND: &str = "eth_sendRawTransaction";

/// What becomes of a request.
#[derive(Clone, Copy)]
enum Fate {
    Passes,
    /// The node never hears of it.
    CutBefore,
    /// The node does what it was asked, and nobody hears of that.
    CutAfter,
    Late,
    ServerError,
    Garbage,
    /// A JSON-RPC error of a node that is busy.
    Busy,
}

impl Line {
    /// A good line to the node at that URL.
    pub(super) async fn to(node: &str, seed: u64) -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let addr = listener.local_addr().expect("it is bound");
        let weather = Arc::new(Weather {
            node: node.trim_start_matches("http://").to_owned(),
            bad: AtomicBool::new(false),
            broken: AtomicU64::new(0),
            dice: Mutex::new(Dice::new(seed)),
            post: Mutex::new(Post::Passes),
            refused: AtomicU64::new(0),
        });
        let of_all = weather.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let weather = of_all.clone();
                // A line that breaks is what this is about.
                tokio::spawn(async move { serve(stream, &weather).await.ok() });
            }
        });
        Line { addr, weather, task }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub(super) fn set_bad(&self, bad: bool) {
        self.weather.bad.store(bad, Ordering::Release);
    }

    /// From here on transactions stay on the line.
    pub(super) fn keep_transactions(&self) {
        *self.weather.post() = Post::Kept(Vec::new());
    }

    /// Transactions that stay on the line.
    pub(super) fn kept(&self) -> usize {
        match &*self.weather.post() {
            Post::Kept(kept) | Post::Before(_, kept) => kept.len(),
            Post::Passes | Post::Refused => 0,
        }
    }

    /// What was kept goes to the node right before the next request of that name, everything else as it comes.
    pub(super) fn release_before(&self, method: &'static str) {
        let mut post = self.weather.post();
        if let Post::Kept(kept) = &mut *post {
            *post = Post::Before(method, std::mem::take(kept));
        }
    }

    /// Whether transactions are answered with an error in the node's place.
    pub(super) fn refuse_transactions(&self, refuse: bool) {
        *self.weather.post() = if refuse { Post::Refused } else { Post::Passes };
    }

    /// Transactions that were refused.
    pub(super) fn refused(&self) -> u64 {
        self.weather.refused.load(Ordering::Acquire)
    }

    /// Requests that did not get their answer in time.
    pub(super) fn broken(&self) -> u64 {
        self.weather.broken.load(Ordering::Acquire)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Weather {
    fn post(&self) -> std::sync::MutexGuard<'_, Post> {
        self.post.lock().expect("nobody panics with the post in hand")
    }

    /// What becomes of a request besides its fate: what goes to the node first, and whether it is served at all.
    fn sort(&self, method: &str, head: &str, body: &[u8]) -> (Vec<(String, Vec<u8>)>, Served) {
        let mut post = self.post();
        match &mut *post {
            Post::Kept(kept) if method == SEND => {
                kept.push((head.to_owned(), body.to_vec()));
                (Vec::new(), Served::Never)
            }
            Post::Before(name, kept) if method == *name => {
                let kept = std::mem::take(kept);
                *post = Post::Passes;
                (kept, Served::AsFated)
            }
            Post::Refused if method == SEND => {
                self.refused.fetch_add(1, Ordering::AcqRel);
                (Vec::new(), Served::Refused)
            }
            Post::Passes | Post::Kept(_) | Post::Before(..) | Post::Refused => (Vec::new(), Served::AsFated),
        }
    }

    fn fate(&self) -> Fate {
        if !self.bad.load(Ordering::Acquire) {
            return Fate::Passes;
        }
        let mut dice = self.dice.lock().expect("nobody panics with the dice in hand");
        let bad = [Fate::CutBefore, Fate::CutAfter, Fate::Late, Fate::ServerError, Fate::Garbage, Fate::Busy];
        if !dice.chance(20) {
            return Fate::Passes;
        }
        self.broken.fetch_add(1, Ordering::AcqRel);
        *dice.pick(&bad).expect("there are some")
    }
}

/// How a request is served.
enum Served {
    AsFated,
    Never,
    Refused,
}

/// One request on one connection: the answer ends it, so that every request meets its own fate.
async fn serve(mut stream: TcpStream, weather: &Weather) -> std::io::Result<()> {
    let (head, body) = request(&mut stream).await?;
    let asked: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let (first, served) = weather.sort(asked["method"].as_str().unwrap_or_default(), &head, &body);
    for (head, body) in first {
        ask(&weather.node, &head, &body).await?;
    }
    let fate = match served {
        Served::AsFated => weather.fate(),
        Served::Never => return Ok(()),
        Served::Refused => Fate::Busy,
    };
    let canned = match fate {
        Fate::Passes => None,
        Fate::CutBefore => return Ok(()),
        Fate::CutAfter => return ask(&weather.node, &head, &body).await.map(drop),
        Fate::Late => {
            tokio::time::sleep(Duration::from_millis(200)).await;
            None
        }
        Fate::ServerError => Some(("500 Internal Server Error", "out of order")),
        Fate::Garbage => Some(("200 OK", "<html>{\"result\":")),
        Fate::Busy => {
            Some(("200 OK", r#"{"jsonrpc":"2.0","id":0,"error":{"code":-32005,"message":"too many requests"}}"#))
        }
    };
    let answer = match canned {
        None => ask(&weather.node, &head, &body).await?,
        Some((status, text)) => {
            // An answer carries the id of its question.
            let text = text.replace("\"id\":0", &format!("\"id\":{}", asked["id"]));
            let length = text.len();
            format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{text}"
            )
            .into_bytes()
        }
    };
    stream.write_all(&answer).await?;
    stream.shutdown().await
}

/// A request's head, without its end, and its body.
async fn request(stream: &mut TcpStream) -> std::io::Result<(String, Vec<u8>)> {
    let mut read = Vec::new();
    let end = loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        let got = stream.read_buf(&mut read).await?;
        if got == 0 || read.len() > HEAD_MAX + (1 << 20) {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    };
    let head = String::from_utf8_lossy(&read[..end]).into_owned();
    let length = head.lines().filter_map(|line| line.split_once(':'));
    let length = length.filter(|(name, _)| name.eq_ignore_ascii_case("content-length")).map(|(_, value)| value.trim());
    let length: usize = length.filter_map(|value| value.parse().ok()).next().unwrap_or(0);
    let mut body = read.split_off(end + 4);
    while body.len() < length {
        if stream.read_buf(&mut body).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok((head, body))
}

async fn ask(node: &str, head: &str, body: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut node = TcpStream::connect(node).await?;
    node.write_all(format!("{head}\r\nconnection: close\r\n\r\n").as_bytes()).await?;
    node.write_all(body).await?;
    let mut answer = Vec::new();
    node.read_to_end(&mut answer).await?;
    Ok(answer)
}
