//! The table and the plot of all figures. Writes the results in `benches/README.md`, between its two marks, and `benches/results.svg`, and
//! only after a run of all sections.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};
use plotters::prelude::{
    BLACK, Color as _, IntoDrawingArea as _, PathElement, RGBColor, Rectangle, SVGBackend, Text, WHITE,
};

use crate::figure::Figure;

const OURS: RGBColor = RGBColor(31, 119, 180);
const OTHERS: RGBColor = RGBColor(170, 170, 170);

/// What the results stand between.
const BEGIN: &str = "<!-- results: written by `cargo bench` -->";
const END: &str = "<!-- end of the results -->";

/// Heading of a section.
fn title(section: &str) -> &str {
    match section {
        "decisions" => "A verdict and a step of the idle machine",
        "scheduler" => "A context switch (two threads, two pipes)",
        "packets" => "A received packet (60 bytes, veth)",
        "bodies" => "The programs themselves (BPF_ENABLE_STATS, less an empty program)",
        "auto" => "`auto` on a saturated host",
        "latency" => "From the kernel to the agent",
        "attempt" => "From the decision to sleep to the order to suspend",
        "agents" => "Whole agents, side by side",
        "held" => "10,000 nodes, and a long-poll of every one",
        "status" => "The status of 10,000 nodes",
        "senders" => "Magic packets, beside other senders",
        "all" => "`/wake/all` of 10,000 nodes, without a stagger",
        "api-server" => "What a wake server asks of the API server while nothing happens",
        "api-agents" => "What the agents ask of it",
        other => other,
    }
}

fn sections(figures: &[Figure]) -> Vec<&str> {
    let mut sections: Vec<&str> = Vec::new();
    for figure in figures {
        if sections.last() != Some(&figure.section.as_str()) {
            sections.push(&figure.section);
        }
    }
    sections
}

/// All figures as Markdown.
pub(crate) fn table(figures: &[Figure]) -> String {
    let mut text = String::new();
    for section in sections(figures) {
        let rows = figures.iter().filter(|figure| figure.section == section);
        let rows: Vec<String> = rows.map(Figure::row).collect();
        // Writing to a string does not fail.
        let _written = write!(
            text,
            "### {}\n\n| figure | value | 95 % interval | goal | note |\n|---|---:|---|---|---|\n{}\n\n",
            title(section),
            rows.join("\n")
        );
    }
    text
}

/// Writes table and plot into `folder`.
pub(crate) fn write(folder: &Path, figures: &[Figure]) -> Result<()> {
    put(folder, (BEGIN, END), figures)?;
    plot(&folder.join("results.svg"), figures)
}

/// Writes the table into `folder`'s README.md, between two marks.
pub(crate) fn put(folder: &Path, (begin, end): (&str, &str), figures: &[Figure]) -> Result<()> {
    let readme = folder.join("README.md");
    let text = fs::read_to_string(&readme)?;
    let (before, rest) = text
        .split_once(begin)
        .context("README.md has no begin of the results")?;
    let (_, after) = rest.split_once(end).context("README.md has no end of the results")?;
    fs::write(&readme, format!("{before}{begin}\n\n{}{end}{after}", table(figures)))?;
    Ok(())
}

/// A panel for each section and unit, a bar for each figure.
fn plot(path: &Path, figures: &[Figure]) -> Result<()> {
    const WIDTH: i32 = 980;
    const BAR: i32 = 22;
    const HEADING: i32 = 44;
    const LEFT: i32 = 460;
    const ROOM: i32 = WIDTH - LEFT - 90;
    let mut panels: Vec<(&str, Vec<&Figure>)> = Vec::new();
    for figure in figures.iter().filter(|figure| figure.plotted && figure.value.is_some()) {
        let same =
            |(_, panel): &&mut (&str, Vec<&Figure>)| panel[0].section == figure.section && panel[0].unit == figure.unit;
        match panels.iter_mut().find(same) {
            Some((_, panel)) => panel.push(figure),
            None => panels.push((title(&figure.section), vec![figure])),
        }
    }
    let bars: usize = panels.iter().map(|(_, panel)| panel.len()).sum();
    let height = HEADING * i32::try_from(panels.len())? + BAR * i32::try_from(bars)? + 20;
    let area = SVGBackend::new(path, (WIDTH.unsigned_abs(), height.unsigned_abs())).into_drawing_area();
    area.fill(&WHITE)?;
    let mut y = 0;
    for (title, panel) in panels {
        let unit = &panel[0].unit;
        area.draw(&Text::new(format!("{title}, {unit}"), (12, y + 18), ("sans-serif", 16)))?;
        y += HEADING - 10;
        let high = |figure: &&Figure| figure.interval.map_or(figure.value.unwrap_or(0.0), |(_, high)| high);
        let most = panel.iter().map(high).fold(f64::MIN_POSITIVE, f64::max);
        #[expect(clippy::cast_possible_truncation, reason = "a share of the width of the plot")]
        let at = |value: f64| LEFT + (value.max(0.0) / most * f64::from(ROOM)).round() as i32;
        for figure in panel {
            let value = figure.value.unwrap_or(0.0);
            let is_ours = ["ours", "vms_", "always", "classes"]
                .iter()
                .any(|ours| figure.what.contains(ours));
            let colour = if is_ours { OURS } else { OTHERS };
            let middle = y + BAR / 2;
            area.draw(&Rectangle::new(
                [(LEFT, y + 3), (at(value), y + BAR - 3)],
                colour.filled(),
            ))?;
            if let Some((low, high)) = figure.interval {
                area.draw(&PathElement::new(vec![(at(low), middle), (at(high), middle)], BLACK))?;
            }
            area.draw(&Text::new(
                figure.what.replace('`', ""),
                (24, y + 4),
                ("sans-serif", 13),
            ))?;
            let end = at(figure.interval.map_or(value, |(_, high)| high.max(value)));
            area.draw(&Text::new(figure.digits(), (end + 6, y + 4), ("sans-serif", 13)))?;
            y += BAR;
        }
        y += 10;
    }
    area.present()?;
    Ok(())
}
