//! The chart: a bar for each ratio, by workload.

use std::fmt::Write;

use super::report::{Report, WorkloadReport};

const WIDTH: f64 = 860.0;
/// Where bars begin; names stand left of it.
const LEFT: f64 = 190.0;
/// Where the axis ends; the numbers of the longest bars stand right of it.
const RIGHT: f64 = 800.0;
const TOP: f64 = 96.0;
const BAR: f64 = 9.0;
const ROW: f64 = 42.0;

/// One series: its name, its colour class, its ratio in a workload.
type Series = (&'static str, &'static str, fn(&WorkloadReport) -> Option<f64>);

const SERIES: [Series; 3] = [
    ("1 worker", "a", |w| w.ratio_1),
    ("2 workers", "b", |w| w.ratio_2),
    ("replay from access lists, 2 workers", "c", |w| w.replay_ratio_2),
];

/// Where the bar of a series begins in the row of a workload.
fn bar_top(row: usize, series: usize) -> f64 {
    TOP + ROW * row as f64 + (ROW - 3.0 * BAR - 2.0) / 2.0 + series as f64 * (BAR + 1.0)
}

/// Draws the ratios of a report. The colours suit light and dark pages.
pub fn chart(report: &Report) -> String {
    let cores = report.machine.cores as f64;
    let ratios = report.workloads.iter().flat_map(|w| SERIES.iter().filter_map(|(_, _, ratio)| ratio(w)));
    let most = ratios.fold(cores.min(2.0), f64::max);
    // The next half above, so that the longest bar stays inside.
    let end = (most * 2.0 + 0.1).ceil() / 2.0;
    let x = |ratio: f64| LEFT + (RIGHT - LEFT) * ratio / end;
    let bottom = TOP + ROW * report.workloads.len() as f64;
    let height = bottom + 58.0;

    let mut svg = String::new();
    // Writing to a string cannot fail.
    let mut put = |line: std::fmt::Arguments<'_>| {
        let _ = svg.write_fmt(line);
        svg.push('\n');
    };
    put(format_args!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" aria-label="Speed of the parallel executors relative to sequential execution, by workload">"#
    ));
    put(format_args!("{STYLE}"));
    put(format_args!(r#"<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>"#));
    put(format_args!(r#"<text class="title" x="20" y="30">Speed relative to sequential execution (1.0)</text>"#));
    put(format_args!(r#"<text class="note" x="20" y="50">{}</text>"#, escaped(&report.conditions())));
    let mut legend = 20.0;
    for (name, class, _) in SERIES {
        put(format_args!(r#"<rect class="{class}" x="{legend}" y="64" width="12" height="12" rx="2"/>"#));
        put(format_args!(r#"<text class="note" x="{}" y="74">{name}</text>"#, legend + 18.0));
        legend += 44.0 + 6.2 * name.len() as f64;
    }
    for tick in 0..=(end * 2.0) as usize {
        let ratio = tick as f64 / 2.0;
        put(format_args!(r#"<line class="grid" x1="{0:.1}" y1="{TOP}" x2="{0:.1}" y2="{bottom}"/>"#, x(ratio)));
        put(format_args!(r#"<text class="tick" x="{:.1}" y="{}">{ratio:.1}</text>"#, x(ratio), bottom + 16.0));
    }
    for (i, workload) in report.workloads.iter().enumerate() {
        let middle = bar_top(i, 1) + BAR - 0.5;
        put(format_args!(r#"<text class="name" x="{}" y="{middle:.1}">{}</text>"#, LEFT - 12.0, workload.name));
        for (place, (_, class, ratio)) in SERIES.iter().enumerate() {
            let Some(ratio) = ratio(workload) else { continue };
            let (y, width) = (bar_top(i, place), x(ratio) - LEFT);
            put(format_args!(
                r#"<rect class="{class}" x="{LEFT}" y="{y:.1}" width="{width:.1}" height="{BAR}" rx="1.5"/>"#
            ));
        }
    }
    // The lines stand before the bars, the numbers before the lines.
    for (ratio, class, label) in
        [(0.9, "floor", "0.9".to_owned()), (1.0, "one", String::new()), (cores, "cores", format!("{cores:.0} cores"))]
    {
        if ratio > end {
            continue;
        }
        put(format_args!(
            r#"<line class="{class}" x1="{0:.1}" y1="{1}" x2="{0:.1}" y2="{bottom}"/>"#,
            x(ratio),
            TOP - 4.0
        ));
        put(format_args!(r#"<text class="tick" x="{:.1}" y="{}">{label}</text>"#, x(ratio), TOP - 7.0));
    }
    for (i, workload) in report.workloads.iter().enumerate() {
        for (place, (_, _, ratio)) in SERIES.iter().enumerate() {
            let Some(ratio) = ratio(workload) else { continue };
            let y = bar_top(i, place) + BAR - 1.0;
            put(format_args!(r#"<text class="value" x="{:.1}" y="{y:.1}">{ratio:.2}</text>"#, x(ratio) + 4.0));
        }
    }
    put(format_args!(
        r#"<text class="tick" x="{:.1}" y="{}">times as fast as one by one, same blocks, execution only</text>"#,
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
.value { font-size: 9.5px; paint-order: stroke; stroke: #ffffff; stroke-width: 3px }
.tick { text-anchor: middle }
.name { font-size: 12.5px; text-anchor: end; font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
.a { fill: #9aa7b4 } .b { fill: #2f6fde } .c { fill: #22a07a }
.grid { stroke: #8b949e; stroke-opacity: .25 }
.floor { stroke: #d1495b; stroke-dasharray: 3 3 } .one { stroke: #57606a } .cores { stroke: #57606a; stroke-dasharray: 6 3 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .page { fill: #0d1117 } .note, .value, .tick { fill: #9da7b1 } .value { stroke: #0d1117 }
.a { fill: #6e7b88 } .b { fill: #5b9bff } .c { fill: #3cc79b } .one, .cores { stroke: #9da7b1 } .floor { stroke: #ff7b8a }
}
</style>";

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::bench::Workload;
    use crate::bench::report::{Aborts, Machine, Method};

    fn report(ratios: &[(f64, f64, f64)]) -> Report {
        let workload = |(name, (one, two, replay)): (Workload, &(f64, f64, f64))| WorkloadReport {
            name,
            txs: 1,
            blocks: 1,
            gas: 1,
            sequential_tps: 1.0,
            ratio_1: Some(*one),
            ratio_2: Some(*two),
            replay_ratio_2: Some(*replay),
            executions_per_tx: 1.0,
            aborts: Aborts::default(),
            conflicts: Vec::new(),
            recover_s: 0.0,
            recover_one_thread_s: 0.0,
            execute_s: 0.0,
            commit_s: 0.0,
            persist_s: 0.0,
            predicted: BTreeMap::new(),
            predictor_error: BTreeMap::new(),
            critical_share: 0.0,
            conditions: String::new(),
            executors: Vec::new(),
        };
        Report {
            machine: Machine {
                cores: 2,
                cpu: "A<B> & C".to_owned(),
                system: "linux".to_owned(),
                load_before: 0.0,
                optimised: true,
            },
            method: Method {
                repetitions: 1,
                seed: 1,
                block_gas: 1,
                workers: vec![1, 2],
                predictor_overhead_ns_per_read: 0.0,
            },
            workloads: Workload::ALL.into_iter().zip(ratios).map(workload).collect(),
        }
    }

    #[test]
    fn every_bar_ends_inside_the_axis_and_text_cannot_break_the_file() {
        let ratios = (0..13u32).map(f64::from).map(|i| (0.9 + i / 100.0, 0.8 + i / 12.0, 1.0 + i / 13.0));
        let report = report(&ratios.collect::<Vec<_>>());
        let svg = chart(&report);
        let bars = svg.lines().filter(|line| line.contains("rx=\"1.5\"")).collect::<Vec<_>>();
        assert_eq!(bars.len(), 3 * report.workloads.len());
        for bar in bars {
            let width = bar.split("width=\"").nth(1).and_then(|rest| rest.split('"').next());
            let width = width.and_then(|width| width.parse::<f64>().ok()).expect("a bar has a width");
            assert!((0.0..=RIGHT - LEFT).contains(&width), "{bar}");
        }
        assert!(svg.contains("A&lt;B&gt; &amp; C") && !svg.contains("A<B>"));
    }
}
