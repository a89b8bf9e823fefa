//! Short invented news reports with a one-sentence summary. The summary needs facts from more than one sentence,
//! rewords the first, and leaves the other sentences out.

use crate::draw::Draw;

const CITIES: &[&str] = &[
    "Altona", "Bremfeld", "Corden", "Dorvik", "Elmstadt", "Farnham", "Grevin", "Halden", "Irmont",
    "Jarrow", "Kelby", "Lorenz", "Morden", "Norby", "Ostrava", "Pelham",
];
const COMPANIES: &[&str] = &[
    "Nordstahl",
    "Veltex",
    "Arkona",
    "Brightline",
    "Calora",
    "Dynexa",
    "Everwood",
    "Fennel",
    "Gaston",
    "Helix",
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
    "Rovers", "Tigers", "Eagles", "Wolves", "Sailors", "Giants", "Comets", "Foxes",
];
const PROJECTS: &[&str] = &[
    "bridge", "hospital", "library", "school", "stadium", "tunnel",
];
const FORCES: &[&str] = &["storm", "flood", "fire", "earthquake"];
const DAYS: &[&str] = &[
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];
const COLOURS: &[&str] = &[
    "The weather was calm and dry.",
    "Many people watched the news on television.",
    "The mayor was not available for comment.",
    "Local shops stayed open as usual.",
    "A large crowd gathered in the main square.",
    "Reporters had waited since the early morning.",
    "Traffic was slow in the whole region.",
    "A spokesman thanked everyone for their patience.",
];

/// One report with its summary.
pub(crate) fn pair(draw: &mut Draw) -> (String, String) {
    let (mut facts, summary) = match draw.number(0, 3) {
        0 => plant(draw),
        1 => sport(draw),
        2 => council(draw),
        _ => disaster(draw),
    };
    // One or two sentences that do not matter, anywhere but in front.
    let first = draw.number(0, COLOURS.len() as u32 - 1) as usize;
    let step = draw.number(1, COLOURS.len() as u32 - 1) as usize;
    let second = (first + step) % COLOURS.len();
    let extra = if draw.chance(50) { 2 } else { 1 };
    for &index in &[first, second][..extra] {
        let place = draw.number(1, facts.len() as u32) as usize;
        facts.insert(place, COLOURS[index].to_owned());
    }
    (facts.join(" "), summary)
}

fn tens(draw: &mut Draw) -> u32 {
    draw.number(2, 9) * 10
}

fn plant(draw: &mut Draw) -> (Vec<String>, String) {
    let (company, city, product, day) = (
        draw.pick(COMPANIES),
        draw.pick(CITIES),
        draw.pick(PRODUCTS),
        draw.pick(DAYS),
    );
    let jobs = tens(draw);
    (
        vec![
            format!("A new plant for {product} was opened by {company} in {city} on {day}."),
            format!("The company wants to hire {jobs} workers this year."),
        ],
        format!("{company} opens a plant for {product} in {city} and hires {jobs} workers."),
    )
}

fn sport(draw: &mut Draw) -> (Vec<String>, String) {
    let (winner, loser) = two(draw, TEAMS);
    let (city, day) = (draw.pick(CITIES), draw.pick(DAYS));
    let low = draw.number(0, 3);
    let high = low + draw.number(1, 3);
    let place = if draw.chance(50) { "first" } else { "second" };
    (
        vec![
            format!("The {loser} were beaten by the {winner} in {city} on {day}."),
            format!("The match ended {high} to {low}."),
            format!("The {winner} are now in {place} place."),
        ],
        format!("The {winner} beat the {loser} {high} to {low} and move to {place} place."),
    )
}

fn council(draw: &mut Draw) -> (Vec<String>, String) {
    let (city, project, day) = (draw.pick(CITIES), draw.pick(PROJECTS), draw.pick(DAYS));
    let cost = tens(draw);
    let approved = draw.chance(50);
    let (passive, active) = match approved {
        true => ("approved", "approves"),
        false => ("rejected", "rejects"),
    };
    (
        vec![
            format!("Plans for a new {project} were {passive} by the council of {city} on {day}."),
            format!("The {project} would cost {cost} million crowns."),
        ],
        format!("{city} {active} a {project} for {cost} million crowns."),
    )
}

fn disaster(draw: &mut Draw) -> (Vec<String>, String) {
    let (city, force, day) = (draw.pick(CITIES), draw.pick(FORCES), draw.pick(DAYS));
    let houses = tens(draw);
    let hurt = draw.chance(50);
    let (people, result) = match hurt {
        true => (
            "Several people were taken to hospital.",
            "hurting several people",
        ),
        false => ("Nobody was hurt.", "but nobody is hurt"),
    };
    let article = if force.starts_with('e') { "An" } else { "A" };
    (
        vec![
            format!("The region of {city} was hit by a heavy {force} on {day}."),
            format!("The authorities counted {houses} damaged houses."),
            people.to_owned(),
        ],
        format!("{article} {force} damages {houses} houses near {city}, {result}."),
    )
}

/// Two different items.
fn two<'a>(draw: &mut Draw, items: &'a [&'a str]) -> (&'a str, &'a str) {
    let first = draw.number(0, items.len() as u32 - 1) as usize;
    let step = draw.number(1, items.len() as u32 - 1) as usize;
    (items[first], items[(first + step) % items.len()])
}
