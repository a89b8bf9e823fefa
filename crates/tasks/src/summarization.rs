//! Short invented news reports with a one-sentence summary. The summary takes facts from more than one sentence,
//! rewords the first, and leaves other sentences out.
//!
//! Every sentence of a report names two parties (a company and a city, two teams, ..) whose pair decides the split, or
//! is a filler whose own text does: so no sentence at all is in two splits.

use crate::Split;
use crate::draw::Draw;

const CITIES: &[&str] = &[
    "Aldmoor", "Bremfeld", "Corvale", "Dorvik", "Elmstadt", "Farnholm", "Grevin", "Haldane",
    "Irmont", "Jarrowby", "Kelby", "Lorent", "Mordale", "Norby", "Ostwick", "Pelmar", "Quillan",
    "Rosgard", "Selwick", "Torvald", "Ulmer", "Vesby", "Wexholm", "Yarden",
];
const COMPANIES: &[&str] = &[
    "Nordstahl",
    "Veltex",
    "Arkonia",
    "Brightline",
    "Calora",
    "Dynexa",
    "Everwood",
    "Fennelco",
    "Gastova",
    "Helixon",
    "Ironia",
    "Jovanti",
    "Kestrix",
    "Lumara",
    "Montera",
    "Novalux",
];
const PRODUCTS: &[&str] = &[
    "batteries",
    "bicycles",
    "engines",
    "furniture",
    "glass",
    "medicine",
    "paper",
    "tyres",
];
const TEAMS: &[&str] = &[
    "Rovers", "Tigers", "Eagles", "Wolves", "Sailors", "Giants", "Comets", "Foxes", "Hawks",
    "Lions", "Pirates", "Rangers", "Saints", "Titans", "Vikings", "Bears",
];
const PROJECTS: &[&str] = &[
    "bridge", "hospital", "library", "school", "stadium", "tunnel", "theatre", "harbour",
    "airport", "museum",
];
const DISASTERS: &[&str] = &[
    "storm",
    "flood",
    "fire",
    "earthquake",
    "avalanche",
    "landslide",
];
const DAYS: &[&str] = &[
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];

/// Parts of a sentence that does not matter.
const FILLERS: [&[&str]; 3] = [
    &[
        "Many people",
        "Two reporters",
        "The neighbours",
        "Local farmers",
        "Several visitors",
        "The teachers",
        "Some children",
        "A few tourists",
    ],
    &[
        "came early",
        "were late",
        "stayed calm",
        "waited outside",
        "asked questions",
        "arrived by bus",
        "left in a hurry",
        "saw nothing",
    ],
    &[
        "in the morning",
        "after lunch",
        "in the evening",
        "at noon",
        "as usual",
        "on that day",
    ],
];

/// A report: the parties whose pair decides its split, the sentences, the summary.
struct Report {
    key: String,
    facts: Vec<String>,
    summary: String,
}

/// One report with its summary, or nothing where the draw belongs to another split.
pub(crate) fn pair(draw: &mut Draw, split: Split) -> Option<(String, String)> {
    let report = match draw.number(0, 3) {
        0 => plant(draw),
        1 => sport(draw),
        2 => council(draw),
        _ => disaster(draw),
    };
    if Split::of(&report.key) != split {
        return None;
    }
    let mut sentences = report.facts;
    // One filler, or two where the report is short; anywhere but in front.
    let fillers = if sentences.len() == 2 && draw.chance(50) {
        2
    } else {
        1
    };
    for _ in 0..fillers {
        let place = draw.number(1, sentences.len() as u32) as usize;
        let filler = filler(draw, split);
        if !sentences.contains(&filler) {
            sentences.insert(place, filler);
        }
    }
    Some((sentences.join(" "), report.summary))
}

fn filler(draw: &mut Draw, split: Split) -> String {
    loop {
        let parts = FILLERS.map(|part| *draw.pick(part));
        let sentence = format!("{}.", parts.join(" "));
        if Split::of(&sentence) == split {
            return sentence;
        }
    }
}

fn tens(draw: &mut Draw) -> u32 {
    draw.number(2, 9) * 10
}

/// "a", or "an" before a vowel.
fn article(word: &str) -> &'static str {
    if word.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    }
}

fn plant(draw: &mut Draw) -> Report {
    let (company, city) = (draw.pick(COMPANIES), draw.pick(CITIES));
    let (product, day, jobs) = (draw.pick(PRODUCTS), draw.pick(DAYS), tens(draw));
    Report {
        key: format!("{company} {city}"),
        facts: vec![
            format!("A new plant for {product} was opened by {company} in {city} on {day}."),
            format!("{company} will give work to {jobs} people in {city}."),
        ],
        summary: format!("{company} opens a plant for {product} in {city} with {jobs} workers."),
    }
}

fn sport(draw: &mut Draw) -> Report {
    let (winner, loser) = two(draw, TEAMS);
    let (city, day) = (draw.pick(CITIES), draw.pick(DAYS));
    let low = draw.number(0, 3);
    let high = low + draw.number(1, 3);
    Report {
        key: format!("{winner} {loser}"),
        facts: vec![
            format!("The {loser} were beaten by the {winner} in {city} on {day}."),
            format!("The match of the {winner} against the {loser} ended {high} to {low}."),
        ],
        summary: format!("The {winner} beat the {loser} {high} to {low} in {city}."),
    }
}

fn council(draw: &mut Draw) -> Report {
    let (city, project, day) = (draw.pick(CITIES), draw.pick(PROJECTS), draw.pick(DAYS));
    let cost = tens(draw);
    let (passive, active) = *draw.pick(&[("approved", "approves"), ("rejected", "rejects")]);
    Report {
        key: format!("{city} {project}"),
        facts: vec![
            format!("Plans for a new {project} in {city} were {passive} by the council on {day}."),
            format!("The {project} in {city} would cost {cost} million crowns."),
        ],
        summary: format!(
            "{city} {active} {} {project} for {cost} million crowns.",
            article(project)
        ),
    }
}

fn disaster(draw: &mut Draw) -> Report {
    let (city, event, day) = (draw.pick(CITIES), draw.pick(DISASTERS), draw.pick(DAYS));
    let houses = tens(draw);
    let (people, result) = match draw.chance(50) {
        true => (
            format!("Several people in {city} were hurt by the {event}."),
            "and hurts several people",
        ),
        false => (
            format!("Nobody in {city} was hurt by the {event}."),
            "but hurts nobody",
        ),
    };
    let mut capital = article(event).to_owned();
    capital[..1].make_ascii_uppercase();
    Report {
        key: format!("{city} {event}"),
        facts: vec![
            format!("{city} was hit by {} {event} on {day}.", article(event)),
            format!("The {event} in {city} damaged {houses} houses."),
            people,
        ],
        summary: format!("{capital} {event} damages {houses} houses in {city} {result}."),
    }
}

/// Two different items.
fn two<'a>(draw: &mut Draw, items: &'a [&'a str]) -> (&'a str, &'a str) {
    let first = draw.number(0, items.len() as u32 - 1) as usize;
    let step = draw.number(1, items.len() as u32 - 1) as usize;
    (items[first], items[(first + step) % items.len()])
}
