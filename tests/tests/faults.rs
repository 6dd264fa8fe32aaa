// SPDX-License-Identifier: Apache-2.0

//! Changes of the mesh itself that must not cost a request, with load on it.
//!
//! Each test runs Bookinfo as a user does, keeps requests going through ingress, tunnels
//! and waypoint, does the thing, and counts. Requests are GETs, so they may be tried again
//! by whoever meets a failure; the client itself never does.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use waymark_tests::load::{Report, Until, http};
use waymark_tests::world::World;

/// How long a change of configuration may take on a busy machine before a test gives up.
const SOON: Duration = Duration::from_secs(20);

/// One world at a time: each takes all cores while it starts.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bookinfo(options: &[&str]) -> Result<World> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/bookinfo");
    World::start(&folder, options)
}

/// Reviews as JSON: productpage, and behind it reviews through the waypoint.
fn reviews(world: &World) -> http::Load {
    http::Load::get(world.door(), "localhost", "/api/v1/products/0/reviews")
}

/// Load of both shapes around `deed`: kept-alive, and a connection for each request.
fn under_load(world: &World, deed: impl FnOnce() -> Result<()>) -> Result<[Report; 2]> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let until = Until::after(Duration::from_secs(120));
    let started: Vec<_> = [false, true]
        .into_iter()
        .map(|fresh| {
            let mut load = reviews(world);
            (load.fresh, load.clients, load.rate) = (fresh, 4, Some(100));
            let until = until.clone();
            runtime.spawn(async move { http::run(&load, &until).await })
        })
        .collect();
    let done = deed();
    until.stop();
    let mut reports = Vec::new();
    for one in started {
        reports.push(runtime.block_on(one)?);
    }
    done?;
    reports.try_into().map_err(|_| anyhow::anyhow!("two reports"))
}

fn nothing_lost(reports: &[Report; 2], what: &str) {
    for (report, shape) in reports.iter().zip(["kept alive", "fresh"]) {
        assert_eq!(report.failures(), 0, "{what}, {shape}: {report:?}");
        assert!(report.good > 0, "{what}, {shape}: nothing was sent");
    }
}

/// One page of reviews by a connection of its own: status and body.
fn ask(world: &World, path: &str) -> Result<(u16, String)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let authority = world.door().to_string();
    runtime.block_on(async {
        let none = ::http::HeaderMap::new();
        let answer =
            examples::http_call::get(&authority, path, &none, Duration::from_secs(10)).await?;
        Ok((answer.status().as_u16(), String::from_utf8_lossy(answer.body()).into_owned()))
    })
}

fn served_by(world: &World, version: &str) -> bool {
    ask(world, "/api/v1/products/0/reviews").is_ok_and(|(_, body)| body.contains(version))
}

#[test]
fn edits_of_routes_and_policies_cost_no_request() -> Result<()> {
    let _turn = turn();
    let world = bookinfo(&[])?;
    let only = |from: &str, to: &str| world.edit("route-reviews.yaml", from, to);
    let reports = under_load(&world, || {
        only("weight: 34", "weight: 0")?;
        world.edit(
            "route-reviews.yaml",
            "weight: 33\n        - name: reviews-v3",
            "weight: 0\n        - name: reviews-v3",
        )?;
        world.until("only version 3 answers", SOON, |world| {
            (0..8).all(|_| served_by(world, "reviews-v3"))
        })?;
        only("weight: 0", "weight: 33")?;
        world.until("version 1 answers again", SOON, |world| served_by(world, "reviews-v1"))?;
        Ok(())
    })?;
    nothing_lost(&reports, "weights");

    // A match on a header that the page forwards for a user who is logged in.
    let text = world.read("route-reviews.yaml")?;
    let (head, rule) = text.split_once("  rules:\n").context("no rules")?;
    let jason = "  rules:\n    - matches:\n        - headers:\n            - name: end-user\n              value: jason\n      backendRefs:\n        - name: reviews-v2\n          port: 9080\n";
    world.write("route-reviews.yaml", &format!("{head}{jason}{rule}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let authority = world.door().to_string();
    let mut headers = ::http::HeaderMap::new();
    headers.insert("cookie", "session=jason".parse()?);
    let as_jason = || {
        let call = examples::http_call::get(
            &authority,
            "/api/v1/products/0/reviews",
            &headers,
            Duration::from_secs(10),
        );
        runtime
            .block_on(call)
            .is_ok_and(|answer| String::from_utf8_lossy(answer.body()).contains("reviews-v2"))
    };
    world.until("jason sees version 2", SOON, |_| (0..8).all(|_| as_jason()))?;

    // A policy that refuses, and its removal.
    let deny = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: none-reads-reviews, namespace: bookinfo}\nspec:\n  targetRefs: [{group: \"\", kind: Service, name: reviews}]\n  action: DENY\n  rules: [{}]\n";
    world.write("zz-deny.yaml", deny)?;
    world.until("reviews are refused", SOON, |world| {
        ask(world, "/api/v1/products/0/reviews").is_ok_and(|(status, _)| status == 403)
    })?;
    world.write("zz-deny.yaml", "# nothing\n")?;
    world.until("reviews are back", SOON, |world| served_by(world, "reviews-v"))?;
    Ok(())
}

#[test]
fn release_and_enrolment_cost_no_request() -> Result<()> {
    let _turn = turn();
    let world = bookinfo(&[])?;
    let hbone = |world: &World| {
        let output = world.waymark(&["workloads"]).map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&output).matches("HBONE").count()
    };
    ensure!(hbone(&world) == 6, "six pods of Bookinfo are in the mesh");
    let reports = under_load(&world, || {
        for _ in 0..3 {
            world.edit("00-namespace.yaml", "dataplane-mode: ambient", "dataplane-mode: none")?;
            world.until("no pod is in the mesh", SOON, |world| hbone(world) == 0)?;
            world.edit("00-namespace.yaml", "dataplane-mode: none", "dataplane-mode: ambient")?;
            world.until("all pods are in the mesh", SOON, |world| {
                hbone(world) == 6 && world.all_ready()
            })?;
        }
        Ok(())
    })?;
    nothing_lost(&reports, "label off and on");
    Ok(())
}

#[test]
fn adding_and_removing_a_waypoint_costs_no_request() -> Result<()> {
    let _turn = turn();
    let world = bookinfo(&[])?;
    // L7 policies would refuse what passes no waypoint; here it is about the way alone.
    world.write("policies.yaml", "# nothing\n")?;
    world.until("no policy", SOON, World::all_ready)?;
    let reports = under_load(&world, || {
        world.edit("00-namespace.yaml", "use-waypoint: waypoint", "use-waypoint: none")?;
        world.until("the guard is off", SOON, |world| guards(world) == 0)?;
        world.edit("00-namespace.yaml", "use-waypoint: none", "use-waypoint: waypoint")?;
        world.until("the guard is on", SOON, |world| guards(world) >= 6 && world.all_ready())?;
        Ok(())
    })?;
    nothing_lost(&reports, "waypoint off and on");
    Ok(())
}

fn guards(world: &World) -> usize {
    let output = world.waymark(&["policies"]).map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).matches("waymark-guard-").count()
}

#[test]
fn rotating_the_root_costs_no_request() -> Result<()> {
    let _turn = turn();
    let world = bookinfo(&[])?;
    let [before] = roots(&world)?.try_into().map_err(|_| anyhow::anyhow!("one root"))?;
    let reports = under_load(&world, || {
        let output = world.waymark(&["rotate-root", "--timeout", "60"])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success() && said.contains("step 3 of 3"), "{said}");
        Ok(())
    })?;
    nothing_lost(&reports, "another root");
    let [after] = roots(&world)?.try_into().map_err(|_| anyhow::anyhow!("one root"))?;
    ensure!(before != after, "the root is the one of before");
    ensure!(served_by(&world, "reviews-v"), "and the mesh goes on");

    // A pod that comes now finds everything under the new root.
    let pod = world.pod("bookinfo", "reviews-v1")?;
    ensure!(world.waymark(&["delete", "pod", &pod])?.status.success());
    world.until("version 1 is back", SOON, |world| {
        world.all_ready() && served_by(world, "reviews-v1")
    })?;
    let reports = under_load(&world, || {
        std::thread::sleep(Duration::from_secs(1));
        Ok(())
    })?;
    nothing_lost(&reports, "after it");
    Ok(())
}

/// Fingerprints of the roots in force.
fn roots(world: &World) -> Result<Vec<String>> {
    let status = world.json(&["status"])?;
    let roots = status.pointer("/ca/roots").and_then(|roots| roots.as_array());
    let each = roots.context("no roots")?.iter();
    Ok(each.filter_map(|root| root.get("fingerprint")?.as_str().map(str::to_owned)).collect())
}
