//! Early against lazy drop, as published.

use rota_sim::drops::sweep;

#[test]
fn early_drop_gains_the_more_the_larger_the_fixed_part() {
    // (α in ms, requests/s with lazy and with early drop as a separate, earlier simulation of the two rules gave them)
    let expected = [(1.0, 372.0, 436.0), (1.4, 398.0, 452.0), (1.8, 445.0, 471.0)];
    let rows = sweep(&expected.map(|(alpha_ms, ..)| alpha_ms), (1, 1), 100.0, 1, &|_, _| ());
    for (row, (alpha_ms, lazy, early)) in rows.iter().zip(expected) {
        assert_eq!(row.alpha_ms, alpha_ms);
        assert!((row.lazy / lazy - 1.0).abs() < 0.08, "{row:?}");
        assert!((row.early / early - 1.0).abs() < 0.03, "{row:?}");
        assert!(row.rota > row.lazy, "{row:?}");
    }
    let gains: Vec<f64> = rows.iter().map(|row| row.early / row.lazy).collect();
    assert!(gains[0] > 1.1 && gains.iter().all(|&gain| gain > 1.0), "{gains:?}");
    assert!(gains[0] > gains[2] + 0.05, "the gain falls with alpha: {gains:?}");
}
