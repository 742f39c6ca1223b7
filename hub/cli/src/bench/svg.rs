//! The chart: payments a second of each workload as a bar, what the machine allows as a mark, on a logarithmic axis.

use std::fmt::Write;

use super::report::{Report, grouped};

const WIDTH: f64 = 860.0;
/// Where bars begin; names stand left of it.
const LEFT: f64 = 130.0;
/// Where the axis ends; numbers stand right of it.
const RIGHT: f64 = 650.0;
const TOP: f64 = 96.0;
const BAR: f64 = 16.0;
const ROW: f64 = 34.0;
/// The axis begins at a thousand payments a second...
const FIRST_DECADE: f64 = 3.0;

/// Draws a report. The colours suit light and dark pages.
pub fn chart(report: &Report) -> String {
    let most = report.workloads.iter().map(|w| w.payments_per_s.max(w.limit_payments_per_s)).fold(10_000.0, f64::max);
    // ...and ends at the next power of ten.
    let last = most.log10().ceil();
    let x = |rate: f64| {
        let decades = (rate.max(1.0).log10() - FIRST_DECADE) / (last - FIRST_DECADE);
        LEFT + (RIGHT - LEFT) * decades.clamp(0.0, 1.0)
    };
    let bottom = TOP + ROW * report.workloads.len() as f64;
    let height = bottom + 54.0;
    let mut svg = String::new();
    // Writing to a string cannot fail.
    let mut put = |line: std::fmt::Arguments<'_>| {
        let _ = svg.write_fmt(line);
        svg.push('\n');
    };
    put(format_args!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" aria-label="Payments a second by workload, and what the machine allows">"#
    ));
    put(format_args!("{STYLE}"));
    put(format_args!(r#"<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>"#));
    put(format_args!(
        r#"<text class="title" x="20" y="30">Payments a second: signed, checked, on disk, receipted</text>"#
    ));
    let place = format!(
        "{} cores of {}, shared by hub, ledger and clients; gRPC over loopback, fdatasync before every answer",
        report.machine.cores, report.conditions.cpu
    );
    put(format_args!(r#"<text class="note" x="20" y="50">{}</text>"#, escaped(&place)));
    put(format_args!(r#"<rect class="a" x="20" y="64" width="12" height="12" rx="2"/>"#));
    put(format_args!(r#"<text class="note" x="38" y="74">measured</text>"#));
    put(format_args!(r#"<rect class="limit" x="120" y="63" width="3" height="14"/>"#));
    put(format_args!(
        r#"<text class="note" x="130" y="74">limit of this machine: signatures, messages, disk (formulas in docs/benchmarks.md)</text>"#
    ));
    for decade in FIRST_DECADE as i32..=last as i32 {
        let rate = 10f64.powi(decade);
        put(format_args!(r#"<line class="grid" x1="{0:.1}" y1="{TOP}" x2="{0:.1}" y2="{bottom}"/>"#, x(rate)));
        put(format_args!(r#"<text class="tick" x="{:.1}" y="{}">{}</text>"#, x(rate), bottom + 16.0, grouped(rate)));
    }
    for (i, workload) in report.workloads.iter().enumerate() {
        let y = TOP + ROW * i as f64 + (ROW - BAR) / 2.0;
        let width = x(workload.payments_per_s) - LEFT;
        put(format_args!(
            r#"<text class="name" x="{}" y="{:.1}">{}</text>"#,
            LEFT - 12.0,
            y + BAR - 4.0,
            workload.name
        ));
        put(format_args!(r#"<rect class="a" x="{LEFT}" y="{y:.1}" width="{width:.1}" height="{BAR}" rx="1.5"/>"#));
        put(format_args!(
            r#"<rect class="limit" x="{:.1}" y="{:.1}" width="3" height="{}"/>"#,
            x(workload.limit_payments_per_s) - 1.5,
            y - 3.0,
            BAR + 6.0
        ));
        let p99 =
            workload.half_rate.map_or(String::new(), |half| format!(", p99 {:.1} ms at half", half.latency.p99_ms));
        put(format_args!(
            r#"<text class="value" x="{}" y="{:.1}">{}{p99}</text>"#,
            RIGHT + 8.0,
            y + BAR - 4.0,
            grouped(workload.payments_per_s)
        ));
    }
    put(format_args!(
        r#"<text class="tick" x="{:.1}" y="{}">payments a second, logarithmic</text>"#,
        (LEFT + RIGHT) / 2.0,
        bottom + 38.0
    ));
    put(format_args!("</svg>"));
    svg
}

const STYLE: &str = "<style>
text { font-family: system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; fill: #24292f }
.page { fill: #ffffff }
.title { font-size: 16px; font-weight: 600 }
.note, .value, .tick { font-size: 11px; fill: #57606a }
.tick { text-anchor: middle }
.name { font-size: 12.5px; text-anchor: end; font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
.a { fill: #2f6fde } .limit { fill: #d1495b }
.grid { stroke: #8b949e; stroke-opacity: .25 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .page { fill: #0d1117 } .note, .value, .tick { fill: #9da7b1 }
.a { fill: #5b9bff } .limit { fill: #ff7b8a }
}
</style>";

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
