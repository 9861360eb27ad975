//! `--session MODEL[,key=value]...`: what to ask, how often, and with which inputs.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// One `--session`.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionSpec {
    pub model: String,
    /// The model's own when `None`.
    pub slo: Option<Duration>,
    /// Items per second, of all processes together; what an open loop needs.
    pub rate: Option<f64>,
    /// Items that each request brings.
    pub items: u32,
    /// Files by input; a name may come several times, and its files then take turns.
    pub inputs: Vec<(String, PathBuf)>,
    /// Room in bytes for outputs; without it, as much as the model says, or as a first request finds out.
    pub rooms: Vec<(String, usize)>,
    /// Most requests in flight in an open loop, per process; without it the load's own limit.
    pub in_flight_max: Option<u32>,
}

/// A dimension's size: `name=size`, or `input:axis=size` where the model gives the dimension no name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Size {
    pub name: String,
    pub size: u32,
}

impl FromStr for SessionSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<SessionSpec, String> {
        let mut fields = text.split(',');
        let model = fields.next().unwrap_or_default().to_owned();
        if model.is_empty() || model.contains('=') {
            return Err(format!("'{text}' must begin with the model's name"));
        }
        let mut spec = SessionSpec {
            model,
            slo: None,
            rate: None,
            items: 1,
            inputs: Vec::new(),
            rooms: Vec::new(),
            in_flight_max: None,
        };
        for field in fields {
            let (key, value) = field.split_once('=').ok_or_else(|| format!("'{field}' is not key=value"))?;
            let positive = || value.parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0);
            let named = || value.split_once('=').filter(|(name, _)| !name.is_empty());
            let wrong = |what: &str| format!("{key}={value}: {what}");
            match key {
                "slo_ms" => {
                    let ms = positive().ok_or_else(|| wrong("an SLO is a number above 0"))?;
                    spec.slo = Some(Duration::from_secs_f64(ms.min(SLO_MS_MAX) / 1e3));
                }
                "rate" => spec.rate = Some(positive().ok_or_else(|| wrong("a rate is a number above 0"))?),
                "items" => {
                    let items = value.parse().ok().filter(|&items| items > 0);
                    spec.items = items.ok_or_else(|| wrong("a request brings 1 item or more"))?;
                }
                "input" => {
                    let (name, file) = named().ok_or_else(|| wrong("input=NAME=FILE.npy is right"))?;
                    spec.inputs.push((name.into(), file.into()));
                }
                "room" => {
                    let room = named().and_then(|(name, bytes)| Some((name.to_owned(), bytes.parse().ok()?)));
                    spec.rooms.push(room.ok_or_else(|| wrong("room=OUTPUT=BYTES is right"))?);
                }
                "in_flight" => {
                    let most = value.parse().ok().filter(|&most| most > 0);
                    spec.in_flight_max = Some(most.ok_or_else(|| wrong("1 request or more is in flight"))?);
                }
                _ => return Err(wrong("there are slo_ms, rate, items, input, room and in_flight")),
            }
        }
        Ok(spec)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let parsed = text.rsplit_once('=').and_then(|(name, size)| Some((name, size.parse().ok()?)));
        let (name, size) = parsed.ok_or_else(|| format!("'{text}' is not name=size"))?;
        Ok(Size { name: name.into(), size })
    }
}

/// An hour: the daemon takes no longer one.
const SLO_MS_MAX: f64 = 3_600_000.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_read_whole() {
        let spec: SessionSpec =
            "vad,slo_ms=20,rate=250.5,items=2,input=input=a.npy,input=input=b.npy,input=sr=sr.npy,room=y=64,in_flight=9"
                .parse()
                .unwrap();
        let expected = SessionSpec {
            model: "vad".into(),
            slo: Some(Duration::from_millis(20)),
            rate: Some(250.5),
            items: 2,
            inputs: [("input", "a.npy"), ("input", "b.npy"), ("sr", "sr.npy")]
                .map(|(n, f)| (n.into(), f.into()))
                .into(),
            rooms: vec![("y".into(), 64)],
            in_flight_max: Some(9),
        };
        assert_eq!(spec, expected);
        assert_eq!("x:2=48".parse(), Ok(Size { name: "x:2".into(), size: 48 }));
    }

    #[test]
    fn mistakes_say_what_would_be_right() {
        let cases = [
            ("", "begin with the model's name"),
            ("rate=5", "begin with the model's name"),
            ("a,rate", "'rate' is not key=value"),
            ("a,rate=0", "a number above 0"),
            ("a,slo_ms=NaN", "a number above 0"),
            ("a,items=0", "1 item or more"),
            ("a,input=x", "input=NAME=FILE.npy"),
            ("a,room=x=big", "room=OUTPUT=BYTES"),
            ("a,in_flight=0", "1 request or more"),
            ("a,rates=5", "there are slo_ms, rate"),
        ];
        for (text, expected) in cases {
            let error = text.parse::<SessionSpec>().unwrap_err();
            assert!(error.contains(expected), "{text}: {error}\nshould contain: {expected}");
        }
    }
}
