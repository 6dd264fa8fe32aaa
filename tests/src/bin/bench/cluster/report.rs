// SPDX-License-Identifier: Apache-2.0

//! The table: each figure beside its bar.

use super::processes::Memory;
use super::{AtSize, Figures, Size};

/// What a figure must not exceed; none: it is told for comparison.
type Bar = Option<f64>;

/// Writes lines of the table.
struct Table<W>(W);

impl<W: std::io::Write> Table<W> {
    fn head(&mut self) -> std::io::Result<()> {
        writeln!(self.0, "{:<66} {:>12} {:>12}", "figure", "measured", "bar")
    }

    fn line(&mut self, what: &str, measured: f64, unit: &str, bar: Bar) -> std::io::Result<()> {
        // Counts have no fraction.
        let figure = |value: f64| match unit {
            "" => format!("{value:.0}"),
            "MiB" => format!("{value:.1} {unit}"),
            "core" => format!("{value:.4} {unit}"),
            _ => format!("{value:.2} {unit}"),
        };
        let (limit, verdict) = match bar {
            None => (String::new(), ""),
            Some(bar) if measured <= bar => (format!("<= {}", figure(bar)), "met"),
            Some(bar) => (format!("<= {}", figure(bar)), "MISSED"),
        };
        let line = format!("{what:<66} {:>12} {limit:>12} {verdict}", figure(measured));
        writeln!(self.0, "{}", line.trim_end())
    }

    fn edits(&mut self, one: &AtSize, bar: Bar) -> std::io::Result<()> {
        let AtSize { routes, waits, cost } = one;
        let ((event_p50, event_p99), (write_p50, write_p99)) = (waits.event(), waits.write());
        let what = |text: &str| format!("{routes} routes: {text}");
        self.line(&what("edit in force after its watch event, p50"), event_p50, "ms", None)?;
        self.line(&what("edit in force after its watch event, p99"), event_p99, "ms", bar)?;
        self.line(&what("edit in force after the write returned, p50"), write_p50, "ms", None)?;
        self.line(&what("edit in force after the write returned, p99"), write_p99, "ms", None)?;
        self.line(&what("CPU of the controller for one edit"), cost.controller, "ms", None)?;
        self.line(&what("CPU of the gateway for one edit"), cost.gateway, "ms", None)
    }

    fn memory(&mut self, what: &str, memory: Memory, bar: Bar) -> std::io::Result<()> {
        self.line(&format!("{what}, resident"), memory.resident, "MiB", bar)?;
        self.line(&format!("{what}, proportional"), memory.proportional, "MiB", None)
    }
}

/// Prints everything.
pub(super) fn print(size: &Size, figures: &Figures) -> anyhow::Result<()> {
    let mut table = Table(std::io::stdout().lock());
    table.head()?;
    let largest = figures.edits.iter().map(|one| one.routes).max();
    for one in &figures.edits {
        table.edits(one, (Some(one.routes) == largest).then_some(10.0))?;
    }
    let burst = &figures.burst;
    let count = |count: usize| u32::try_from(count).map(f64::from);
    let what = |text: &str| format!("{} routes at once: {text}", size.burst);
    table.line(&what("first to last made"), burst.took, "s", Some(size.within + 0.1))?;
    table.line(&what("last made to attachedRoutes right"), burst.counted_after, "s", Some(0.1))?;
    table.line(&what("writes of the Gateway"), count(burst.gateway_writes)?, "", Some(20.0))?;
    table.line(
        &what("times that attachedRoutes fell"),
        count(burst.wrong_counts)?,
        "",
        Some(0.0),
    )?;
    table.line(&what("writes of the routes' statuses"), count(burst.route_writes)?, "", None)?;
    table.line(&what("CPU of the controller for each"), burst.cpu, "ms", Some(1.0))?;
    let (routes, cpu) = figures.made;
    let what = format!("up to {routes} routes, as quickly as can be: CPU for each");
    table.line(&what, cpu, "ms", Some(1.0))?;
    let full = format!("{routes} routes, {} pods", size.pods);
    table.memory(&format!("controller, {full}"), figures.leader, Some(120.0))?;
    for follower in &figures.followers {
        table.memory(&format!("controller that follows, {full}"), *follower, None)?;
    }
    table.line("controller, nothing happening", figures.idle, "core", None)?;
    table.line("controller, one pod replaced a second", figures.churn, "core", Some(0.01))?;
    table.memory(&format!("gateway, {routes} routes"), figures.gateway, Some(30.0))?;
    table.memory(&format!("gateway, {full}"), figures.gateway_full, None)?;
    Ok(())
}
