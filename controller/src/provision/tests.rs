// SPDX-License-Identifier: Apache-2.0

//! Files of Gateways over restarts of the controller.

use super::*;
use crate::translate::testing::Edited;

const GATEWAY: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: n}
spec:
  gatewayClassName: waymark
  infrastructure: {parametersRef: {group: '', kind: ConfigMap, name: p}}
  listeners: [{name: http, port: 80, protocol: HTTP}]
";

fn parameters(layer: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: p, namespace: n}}\n\
         data: {{deployment: 'spec: {{{layer}}}'}}\n"
    )
}

#[test]
fn the_file_of_a_gateway_with_refused_parameters_stays_over_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("n.gw.yaml");
    let read = || std::fs::read_to_string(&path).unwrap_or_default();
    let every = |edited: &Edited| edited.table().all().map(|(key, _)| key.clone()).collect();

    let mut edited = Edited::default();
    edited.put(GATEWAY);
    edited.put(&parameters("replicas: 3"));
    Writer::new(directory.path().to_owned()).write(edited.table(), &every(&edited));
    let good = read();
    assert!(good.contains("\"replicas\": 3"), "{good}");

    // Another controller, for which they were never good.
    let mut edited = Edited::default();
    edited.put(GATEWAY);
    edited.put(&parameters("replics: 5"));
    let mut writer = Writer::new(directory.path().to_owned());
    writer.write(edited.table(), &every(&edited));
    assert_eq!(read(), good);

    edited.put(&parameters("replicas: 5"));
    writer.write(edited.table(), &every(&edited));
    assert!(read().contains("\"replicas\": 5"), "{}", read());

    let mut again = Writer::new(directory.path().to_owned());
    let mut edited = Edited::default();
    edited.put(GATEWAY);
    edited.put(&parameters("replics: 5"));
    again.write(edited.table(), &every(&edited));
    let gone = edited.remove(Kind::Gateway, "n/gw");
    again.write(edited.table(), &gone);
    assert!(!path.exists(), "its Gateway went");
}
