//! The program itself, with its echo servers in processes of their own.

use std::process::Command;

/// Every transport answers in every comparison, and Rota's ring is what the others are compared with.
#[test]
fn every_transport_is_measured() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rota-bench"));
    let output = command.args(["ipc", "--rounds", "2", "--round-ms", "5", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let comparisons = json["comparisons"].as_array().unwrap();
    // Round trips twice and a tensor, p50 and p99 each; three throughputs.
    assert_eq!(comparisons.len(), 9);
    for comparison in comparisons {
        let rows = comparison["rows"].as_array().unwrap();
        let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
        assert!(names.starts_with(&["Rota's ring", "Unix socket", "TCP loopback"]), "{names:?}");
        assert_eq!(rows[0]["ratio"], 1.0);
        for row in rows {
            let [min, median, max] = ["min", "median", "max"].map(|field| row[field].as_f64().unwrap());
            assert!(0.0 < min && min <= median && median <= max, "{row}");
        }
    }
}

#[test]
fn without_a_daemon_the_message_says_what_to_do() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rota-bench"));
    let arguments = ["load", "--socket", "/nonexistent/rota.sock", "--session", "digits,rate=5"];
    let output = command.args(arguments).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(error.contains("no daemon listens on /nonexistent/rota.sock; start `rota serve`"), "{error}");
    // A load without a rate is refused before anything is connected.
    let output = command.args(["--session", "digits"]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("--session digits,rate=N, or --closed N"), "{error}");
}
