use super::*;

/// Checks what a parser would: tags that nest, quoted attributes, no stray markup in text, finite numbers. Returns the
/// elements' names.
pub fn check(svg: &str) -> Vec<String> {
    let (mut open, mut seen) = (Vec::new(), Vec::new());
    let mut rest = svg;
    while let Some(start) = rest.find('<') {
        let text = &rest[..start];
        let entities = ["&amp;", "&lt;", "&gt;", "&quot;"];
        assert!(text.match_indices('&').all(|(at, _)| entities.iter().any(|e| text[at..].starts_with(e))), "{text}");
        assert!(!text.contains('>'), "{text}");
        let end = start + rest[start..].find('>').expect("a tag ends");
        let tag = &rest[start + 1..end];
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        assert!(!tag.contains("NaN") && !tag.contains("inf"), "{tag}");
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap_or_default().to_owned();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "{tag}");
        } else {
            seen.push(name.clone());
            if !tag.ends_with('/') {
                open.push(name);
            }
        }
        rest = &rest[end + 1..];
    }
    assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest}");
    seen
}

#[test]
fn a_drawing_is_well_formed_whatever_the_words() {
    let mut drawing = Drawing::new(100.0, 50.0);
    drawing.block((1.0, 2.0), (-3.0, 4.0), "#ff0000", "<&>");
    drawing.text((1.0, 2.0), 12.0, Anchor::Middle, "a<b & \"c\"\u{1}");
    drawing.polyline(&[(0.0, 0.0), (1.0, 1.0)], "#000000", "");
    let svg = drawing.finish();
    assert_eq!(check(&svg), ["svg", "rect", "rect", "title", "text", "polyline"]);
    assert!(svg.contains("a&lt;b &amp; &quot;c&quot; </text>"), "{svg}");
}

#[test]
fn ticks_are_round_and_figures_short() {
    for (most, step) in [(47.0, 5.0), (0.3, 0.05), (1000.0, 100.0), (9.9, 1.0)] {
        assert!((tick(most, 10.0) - step).abs() < step * 1e-9, "{most}: {}", tick(most, 10.0));
    }
    assert_eq!([figure(3.0), figure(0.25), figure(1.23456)], ["3", "0.25", "1.235"]);
    assert_eq!([shortened("abc", 3), shortened("abcd", 3)], ["abc", "ab…"]);
}
