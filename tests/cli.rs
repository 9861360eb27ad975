//! The program's verbs, as a user runs them: the real binary, and a real daemon where they need one.

#[allow(dead_code, reason = "not every test file uses all of it")]
mod support;

use support::{Daemon, Folder, emulated, emulated_device};

#[test]
fn a_daemon_serves_an_emulated_model_and_drains_on_sigterm() {
    let folder = Folder::new("serve");
    let profiles = folder.write("profiles.toml", emulated("echo", "1 = 1.0, 8 = 2.0"));
    let daemon = Daemon::start(&folder, &emulated_device(2, &profiles));
    let mut client = daemon.client();
    let session = client.open("echo", rota_ipc::client::Open::default()).unwrap();
    let mut request = client.request(&session).unwrap();
    request.input::<f32>("x", &[1, 4]).unwrap().copy_from_slice(&[1.0, 2.0, 3.0, 4.0]);
    let answer = client.infer(request).unwrap();
    assert_eq!(answer.output::<f32>("y").unwrap().data, [1.0, 2.0, 3.0, 4.0]);
    assert!(daemon.stop().success());
}
