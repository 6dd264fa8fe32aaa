// SPDX-License-Identifier: Apache-2.0

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::JoinHandle;

use super::super::state::StateFolder;
use super::*;

/// An agent that takes one call and answers it so; gives what it was asked.
fn agent(folder: &Path, answer: &'static str) -> JoinHandle<String> {
    let listener = UnixListener::bind(folder.join(SOCKET)).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut asked = Vec::new();
        let mut part = [0; 4096];
        while !asked.ends_with(b"}") {
            let len = stream.read(&mut part).unwrap();
            assert_ne!(len, 0, "the call ended early");
            asked.extend_from_slice(&part[..len]);
        }
        stream.write_all(answer.as_bytes()).unwrap();
        String::from_utf8(asked).unwrap()
    })
}

fn configuration(folder: &Path) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "net", "type": "waymark-cni",
        "cni_agent_run_dir": folder,
        "prevResult": {
            "cniVersion": "1.0.0",
            "ips": [{"address": "10.244.1.5/24"}, {"address": "fd00:10:244:1::5/64"}],
        },
    })
}

fn invocation(command: &str, namespace: &str) -> Invocation {
    Invocation {
        command: command.to_owned(),
        netns: "/run/netns/pod".to_owned(),
        args: format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=web;K8S_POD_UID=u-1"
        ),
    }
}

const ENROLLED: &str = "HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\n{\"enrolled\":true}";
const LATE: &str = "HTTP/1.1 504 Gateway Timeout\r\n\r\n{\"error\":\"not proven\"}";

#[test]
fn a_pod_of_the_mesh_waits_for_the_agent_and_passes_the_result_on() {
    let folder = tempfile::tempdir().unwrap();
    let agent = agent(folder.path(), ENROLLED);
    let configuration = configuration(folder.path());
    let output = run(&invocation("ADD", "shop"), &configuration.to_string());
    assert_eq!(output.text.as_ref(), configuration.get("prevResult"));
    assert!(output.success);
    let asked = agent.join().unwrap();
    assert!(asked.starts_with("POST /cmdadd HTTP/1.1\r\n"), "{asked}");
    let call: Call = serde_json::from_str(asked.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    let ips = ["10.244.1.5", "fd00:10:244:1::5"].map(|ip| ip.parse().unwrap()).to_vec();
    let want = Call {
        netns: "/run/netns/pod".into(),
        pod_name: "web".to_owned(),
        pod_namespace: "shop".to_owned(),
        pod_uid: "u-1".to_owned(),
        ips,
        outside: false,
    };
    assert_eq!(call, want);
}

#[test]
fn a_pod_that_cannot_be_enrolled_now_is_tried_again_later() {
    let unreachable = tempfile::tempdir().unwrap();
    let late = tempfile::tempdir().unwrap();
    let agent = agent(late.path(), LATE);
    for (folder, want) in [(&unreachable, "cannot be reached"), (&late, "not proven")] {
        let configuration = configuration(folder.path());
        let output = run(&invocation("ADD", "shop"), &configuration.to_string());
        let text = output.text.unwrap();
        assert!(!output.success, "{want}");
        assert_eq!(text["code"], 11, "{want}");
        assert!(text["msg"].as_str().unwrap().contains(want), "{text}");
    }
    agent.join().unwrap();
}

#[test]
fn pods_outside_the_mesh_start_without_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    let state = StateFolder::open(folder.path().to_owned()).unwrap();
    state.save_outside(&Outside::of(["plain".to_owned()])).unwrap();
    let configuration = configuration(folder.path());
    for (namespace, passes) in [("kube-system", true), ("plain", true), ("shop", false)] {
        let output = run(&invocation("ADD", namespace), &configuration.to_string());
        assert_eq!(output.success, passes, "{namespace}");
    }
}

#[test]
fn pods_outside_the_mesh_are_told_of_and_do_not_wait() {
    let folder = tempfile::tempdir().unwrap();
    let agent = agent(folder.path(), LATE);
    let configuration = configuration(folder.path()).to_string();
    assert!(run(&invocation("ADD", "kube-system"), &configuration).success);
    let asked = agent.join().unwrap();
    assert!(asked.contains("\"outside\":true"), "{asked}");
}

#[test]
fn the_end_of_a_pod_waits_for_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let configuration = configuration(folder.path()).to_string();
    let nothing = Output { text: None, success: true };
    assert_eq!(run(&invocation("DEL", "shop"), &configuration), nothing, "agent away");
    let agent = agent(folder.path(), ENROLLED);
    assert_eq!(run(&invocation("DEL", "shop"), &configuration), nothing);
    let asked = agent.join().unwrap();
    assert!(asked.starts_with("POST /cmddel") && asked.contains("u-1"), "{asked}");
}

#[test]
fn the_protocol_is_spoken_as_specified() {
    let folder = tempfile::tempdir().unwrap();
    let good = configuration(folder.path());
    let mut old = good.clone();
    old["cniVersion"] = json!("0.2.0");
    let mut alone = good.clone();
    alone.as_object_mut().unwrap().remove("prevResult");
    let cases = [
        // command, configuration, code of the error or none
        ("VERSION", String::new(), None),
        ("CHECK", good.to_string(), None),
        ("GC", good.to_string(), None),
        ("STATUS", good.to_string(), Some(50)),
        ("ADD", old.to_string(), Some(1)),
        ("FROB", good.to_string(), Some(4)),
        ("ADD", "{".to_owned(), Some(6)),
        ("ADD", alone.to_string(), Some(7)),
    ];
    for (command, configuration, code) in cases {
        let output = run(&invocation(command, "shop"), &configuration);
        assert_eq!(output.success, code.is_none(), "{command}");
        if let Some(code) = code {
            assert_eq!(output.text.unwrap()["code"], code, "{command}");
        }
    }
    let version = run(&invocation("VERSION", ""), "").text.unwrap();
    assert!(version["supportedVersions"].as_array().unwrap().contains(&json!("1.1.0")));
}
