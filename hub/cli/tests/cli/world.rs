//! Folders, processes and their output.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything that should happen may take, before the test calls it stuck.
pub const PATIENCE: Duration = Duration::from_secs(100);

/// The binary under test.
pub fn binary() -> PathBuf {
    let given = std::env::var_os("PAYHUB_BIN").map(PathBuf::from);
    // Tests run in the package's folder; a relative name is meant from the workspace's.
    let given = given.map(|path| if path.is_absolute() { path } else { repo().join(path) });
    given.unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_payhub")))
}

/// The top folder of the checkout.
pub fn repo() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().nth(2).expect("the package lies two folders deep").to_owned()
}

/// A user's folder, with everything that a test starts in it.
pub struct World {
    dir: tempfile::TempDir,
}

/// A command that has ended; printed whole when it is not as expected.
#[derive(Debug)]
pub struct Done {
    #[allow(dead_code, reason = "it is printed")]
    pub args: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// A process that goes on; killed when dropped.
pub struct Running {
    child: Child,
    name: String,
    lines: Receiver<String>,
    stderr: PathBuf,
}

impl World {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("payhub-cli-").tempdir().expect("a temporary folder");
        World { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::write(&path, text).expect("the file can be written");
        path.display().to_string()
    }

    /// A command of the binary with this user's folder and nothing of the environment that would steer it.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(args).current_dir(self.dir.path()).env("PAYHUB_HOME", self.path("home"));
        for name in ["PAYHUB_DATA_DIR", "PAYHUB_HUB", "PAYHUB_RPC", "PAYHUB_KEY", "PAYHUB_TOWER", "RUST_LOG"] {
            command.env_remove(name);
        }
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, args: &[&str]) -> Done {
        self.run_with(args, "")
    }

    /// Runs a command to its end with something on its standard input.
    pub fn run_with(&self, args: &[&str], stdin: &str) -> Done {
        run(self.command(args), stdin)
    }

    /// Runs a command that must succeed; gives its one JSON object.
    pub fn json(&self, args: &[&str]) -> Value {
        let done = self.run(&[args, &["--json"]].concat());
        assert!(done.status.success(), "{done:#?}");
        done.object()
    }

    /// Starts a command that goes on, and waits for its ready line.
    pub fn start(&self, args: &[&str]) -> (Running, Value) {
        let running = self.launch(args);
        let ready = running.line();
        assert_eq!(ready["ready"], true, "{}: {ready}", running.name);
        (running, ready)
    }

    /// Starts a command that goes on.
    pub fn launch(&self, args: &[&str]) -> Running {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let stderr = self.path(&format!("stderr-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        let mut command = self.command(args);
        command.arg("--json").stdout(Stdio::piped()).stderr(File::create(&stderr).expect("a file"));
        let mut child = command.spawn().expect("the binary starts");
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Running { child, name: args.join(" "), lines, stderr }
    }
}

impl Done {
    /// The exit code.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("ended by a signal: {self:#?}"))
    }

    /// What `--json` printed: exactly one object.
    pub fn object(&self) -> Value {
        let mut values = serde_json::Deserializer::from_str(&self.stdout).into_iter::<Value>();
        let first = values.next().unwrap_or_else(|| panic!("nothing on standard output: {self:#?}"));
        let first = first.unwrap_or_else(|e| panic!("no JSON ({e}): {self:#?}"));
        assert!(first.is_object() && values.next().is_none(), "not exactly one object: {self:#?}");
        first
    }
}

impl Running {
    /// The next line of its standard output.
    pub fn line(&self) -> Value {
        let line = self.lines.recv_timeout(PATIENCE);
        let line = line.unwrap_or_else(|e| panic!("{} printed no line ({e}): {}", self.name, self.errors()));
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{}: {line:?} is no JSON: {e}", self.name))
    }

    /// Reads lines until one fits.
    pub fn until(&self, fits: impl Fn(&Value) -> bool) -> Value {
        loop {
            let line = self.line();
            if fits(&line) {
                return line;
            }
        }
    }

    /// What it said on standard error so far.
    pub fn errors(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Sends it a signal, as in `TERM`.
    pub fn signal(&self, signal: &str) {
        send_signal(self.child.id(), signal);
    }

    /// Ends it in order and says how it ended.
    pub fn stop(mut self) {
        self.signal("TERM");
        let status = self.wait();
        assert!(status.success(), "{} ended with {status}: {}", self.name, self.errors());
    }

    /// Kills it in the middle of whatever it does.
    pub fn kill(mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        // Standard output ends when the process does.
        let until = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return self.child.wait().expect("it ended"),
                Err(RecvTimeoutError::Timeout) => panic!("{} does not end: {}", self.name, self.errors()),
            }
        }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("it can be asked").is_none()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("---- standard error of `{}`:\n{}", self.name, self.errors());
        }
    }
}

/// Runs any command to its end; one that hangs is killed and fails the test.
pub fn run(mut command: Command, stdin: &str) -> Done {
    let args = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let pid = child.id();
    // A program that reads nothing may be gone before this is written.
    let _ = child.stdin.take().expect("it is piped").write_all(stdin.as_bytes());
    let (sender, ended) = channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    let output = ended.recv_timeout(patience_of(&args)).unwrap_or_else(|_| {
        send_signal(pid, "KILL");
        panic!("`{args}` does not end");
    });
    let output = output.expect("its output can be read");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
    Done { args, status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// The long run of kills pays for minutes.
fn patience_of(args: &str) -> Duration {
    if args.starts_with("pay ") { PATIENCE * 6 } else { PATIENCE }
}

/// Sends a signal to a process that the test started.
fn send_signal(pid: u32, signal: &str) {
    let sent = Command::new("kill").args(["-s", signal, &pid.to_string()]).status();
    assert!(sent.expect("kill is there").success(), "process {pid} is there");
}

/// A port that is free now, and that no outgoing connection takes: below the usual range of those.
pub fn free_port() -> u16 {
    loop {
        let mut bytes = [0; 2];
        getrandom::fill(&mut bytes).expect("random bytes");
        let port = 10_000 + u16::from_le_bytes(bytes) % 20_000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// A port that something listens on, until dropped.
pub fn busy_port() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    (listener, port)
}

/// A server that answers every HTTP request with a page: what a mistyped port may lead to.
pub fn web_server() -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let _ = stream.read(&mut [0; 4096]);
            let page = "<html>hello</html>";
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\ncontent-length: ";
            let _ = write!(stream, "{head}{}\r\n\r\n{page}", page.len());
        }
    });
    url
}

/// An asset's row of `payhub balance`.
pub fn row<'a>(value: &'a Value, list: &str, asset: &str) -> &'a Value {
    let rows = value[list].as_array().unwrap_or_else(|| panic!("a list {list:?} in {value}"));
    rows.iter().find(|r| r["asset"] == asset).unwrap_or_else(|| panic!("a row of {asset} in {value}"))
}

/// A decimal string as a count of millionths: enough for test dollars.
pub fn micros(value: &Value) -> u128 {
    let text = value.as_str().unwrap_or_else(|| panic!("a decimal string, found {value}"));
    proto::Amount::parse_units(text, 6).unwrap_or_else(|e| panic!("{text:?}: {e}")).get()
}

/// Asserts that an object has these fields and no other.
pub fn has_fields(value: &Value, fields: &[&str]) {
    let mut expected: Vec<&str> = fields.to_vec();
    expected.sort_unstable();
    let mut found: Vec<&str> = value.as_object().expect("an object").keys().map(String::as_str).collect();
    found.sort_unstable();
    assert_eq!(found, expected, "{value}");
}
