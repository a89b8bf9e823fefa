//! Words of the translation task. Every English word stands for exactly one German one.

/// Grammatical gender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gender {
    Masculine,
    Feminine,
    Neuter,
}
use Gender::{Feminine as F, Masculine as M, Neuter as N};

/// Singular and plural in both languages. None declines weakly, so accusative and dative differ from the
/// nominative in the determiner alone (dative plural is not used).
pub(crate) struct Noun {
    pub(crate) en: [&'static str; 2],
    pub(crate) de: [&'static str; 2],
    pub(crate) gender: Gender,
}

const fn noun(gender: Gender, en: [&'static str; 2], de: [&'static str; 2]) -> Noun {
    Noun { en, de, gender }
}

/// People: subjects and receivers.
pub(crate) static BEINGS: &[Noun] = &[
    noun(M, ["man", "men"], ["Mann", "Männer"]),
    noun(F, ["woman", "women"], ["Frau", "Frauen"]),
    noun(N, ["child", "children"], ["Kind", "Kinder"]),
    noun(N, ["girl", "girls"], ["Mädchen", "Mädchen"]),
    noun(M, ["teacher", "teachers"], ["Lehrer", "Lehrer"]),
    noun(M, ["doctor", "doctors"], ["Arzt", "Ärzte"]),
    noun(M, ["father", "fathers"], ["Vater", "Väter"]),
    noun(F, ["mother", "mothers"], ["Mutter", "Mütter"]),
    noun(M, ["brother", "brothers"], ["Bruder", "Brüder"]),
    noun(F, ["sister", "sisters"], ["Schwester", "Schwestern"]),
    noun(M, ["son", "sons"], ["Sohn", "Söhne"]),
    noun(F, ["daughter", "daughters"], ["Tochter", "Töchter"]),
    noun(M, ["friend", "friends"], ["Freund", "Freunde"]),
    noun(M, ["cook", "cooks"], ["Koch", "Köche"]),
    noun(M, ["gardener", "gardeners"], ["Gärtner", "Gärtner"]),
    noun(M, ["painter", "painters"], ["Maler", "Maler"]),
    noun(F, ["queen", "queens"], ["Königin", "Königinnen"]),
    noun(M, ["king", "kings"], ["König", "Könige"]),
    noun(
        F,
        ["nurse", "nurses"],
        ["Krankenschwester", "Krankenschwestern"],
    ),
];

/// Things and animals to buy, see, find, carry.
pub(crate) const THINGS: &[Noun] = &[
    noun(M, ["table", "tables"], ["Tisch", "Tische"]),
    noun(M, ["chair", "chairs"], ["Stuhl", "Stühle"]),
    noun(N, ["car", "cars"], ["Auto", "Autos"]),
    noun(N, ["bicycle", "bicycles"], ["Fahrrad", "Fahrräder"]),
    noun(N, ["house", "houses"], ["Haus", "Häuser"]),
    noun(F, ["flower", "flowers"], ["Blume", "Blumen"]),
    noun(F, ["lamp", "lamps"], ["Lampe", "Lampen"]),
    noun(F, ["clock", "clocks"], ["Uhr", "Uhren"]),
    noun(M, ["ball", "balls"], ["Ball", "Bälle"]),
    noun(M, ["key", "keys"], ["Schlüssel", "Schlüssel"]),
    noun(F, ["jacket", "jackets"], ["Jacke", "Jacken"]),
    noun(M, ["hat", "hats"], ["Hut", "Hüte"]),
    noun(N, ["knife", "knives"], ["Messer", "Messer"]),
    noun(M, ["spoon", "spoons"], ["Löffel", "Löffel"]),
    noun(F, ["cup", "cups"], ["Tasse", "Tassen"]),
    noun(N, ["picture", "pictures"], ["Bild", "Bilder"]),
    noun(M, ["apple", "apples"], ["Apfel", "Äpfel"]),
    noun(M, ["cake", "cakes"], ["Kuchen", "Kuchen"]),
    noun(N, ["egg", "eggs"], ["Ei", "Eier"]),
    noun(F, ["pear", "pears"], ["Birne", "Birnen"]),
    noun(N, ["book", "books"], ["Buch", "Bücher"]),
    noun(M, ["letter", "letters"], ["Brief", "Briefe"]),
    noun(F, ["newspaper", "newspapers"], ["Zeitung", "Zeitungen"]),
    noun(N, ["poem", "poems"], ["Gedicht", "Gedichte"]),
    noun(M, ["dog", "dogs"], ["Hund", "Hunde"]),
    noun(F, ["cat", "cats"], ["Katze", "Katzen"]),
    noun(N, ["horse", "horses"], ["Pferd", "Pferde"]),
];

/// What can be eaten.
pub(crate) const FOOD: std::ops::Range<usize> = 16..20;
/// What can be read.
pub(crate) const TEXTS: std::ops::Range<usize> = 20..24;

/// What can be opened and closed.
pub(crate) const OPENINGS: &[Noun] = &[
    noun(F, ["door", "doors"], ["Tür", "Türen"]),
    noun(N, ["window", "windows"], ["Fenster", "Fenster"]),
    noun(F, ["bag", "bags"], ["Tasche", "Taschen"]),
    noun(M, ["suitcase", "suitcases"], ["Koffer", "Koffer"]),
    noun(F, ["box", "boxes"], ["Kiste", "Kisten"]),
    noun(N, ["gate", "gates"], ["Tor", "Tore"]),
];

/// Places, with the preposition of being there: English, German with the definite article of the dative.
pub(crate) const PLACES: &[(&str, &str)] = &[
    ("in the garden", "im Garten"),
    ("in the park", "im Park"),
    ("in the city", "in der Stadt"),
    ("in the kitchen", "in der Küche"),
    ("in the school", "in der Schule"),
    ("in the forest", "im Wald"),
    ("in the village", "im Dorf"),
    ("in the hotel", "im Hotel"),
    ("in the church", "in der Kirche"),
    ("at the station", "am Bahnhof"),
    ("at the river", "am Fluss"),
    ("at the lake", "am See"),
    ("on the bridge", "auf der Brücke"),
    ("at the market", "auf dem Markt"),
    ("behind the museum", "hinter dem Museum"),
    ("next to the wall", "neben der Mauer"),
];

/// Adverbs of time, for the present and for the past.
pub(crate) const NOW: &[(&str, &str)] = &[
    ("today", "heute"),
    ("now", "jetzt"),
    ("often", "oft"),
    ("sometimes", "manchmal"),
    ("every day", "jeden Tag"),
    ("in the evening", "am Abend"),
    ("in summer", "im Sommer"),
];
/// Adverbs of the past.
pub(crate) const THEN: &[(&str, &str)] = &[
    ("yesterday", "gestern"),
    ("last week", "letzte Woche"),
    ("on Sunday", "am Sonntag"),
    ("two days ago", "vor zwei Tagen"),
];

/// Adjectives with regular endings: English, German stem.
pub(crate) type Adjectives = [(&'static str, &'static str)];

/// For people.
pub(crate) const BEING_ADJECTIVES: &Adjectives = &[
    ("old", "alt"),
    ("young", "jung"),
    ("small", "klein"),
    ("big", "groß"),
    ("good", "gut"),
    ("strange", "seltsam"),
    ("clever", "klug"),
    ("happy", "glücklich"),
];
/// For things and animals.
pub(crate) const THING_ADJECTIVES: &Adjectives = &[
    ("old", "alt"),
    ("small", "klein"),
    ("big", "groß"),
    ("good", "gut"),
    ("strange", "seltsam"),
    ("new", "neu"),
    ("beautiful", "schön"),
    ("red", "rot"),
    ("green", "grün"),
    ("white", "weiß"),
    ("black", "schwarz"),
    ("cheap", "billig"),
];

/// Ein-words besides the indefinite article: English, German stem.
pub(crate) const POSSESSIVES: &[(&str, &str)] =
    &[("my", "mein"), ("his", "sein"), ("our", "unser")];

/// A verb. German present: stem forms for `er` and `sie` (plural), the infinitive without its prefix being the
/// plural form; `prefix` is split off in main clauses.
pub(crate) struct Verb {
    /// Base, third person, past.
    pub(crate) en: [&'static str; 3],
    /// Third person singular, plural (the infinitive), participle.
    pub(crate) de: [&'static str; 3],
    pub(crate) prefix: &'static str,
    /// Behind an English verb ("opens", but "cleans up").
    pub(crate) particle: &'static str,
    /// Perfect with `sein`.
    pub(crate) motion: bool,
}

const fn verb(en: [&'static str; 3], de: [&'static str; 3]) -> Verb {
    Verb {
        en,
        de,
        prefix: "",
        particle: "",
        motion: false,
    }
}

const fn split(prefix: &'static str, en: [&'static str; 3], de: [&'static str; 3]) -> Verb {
    Verb {
        prefix,
        ..verb(en, de)
    }
}

const fn moves(prefix: &'static str, en: [&'static str; 3], de: [&'static str; 3]) -> Verb {
    Verb {
        motion: true,
        ..split(prefix, en, de)
    }
}

const fn up(verb: Verb) -> Verb {
    Verb {
        particle: "up",
        ..verb
    }
}

/// With any thing as object.
pub(crate) const THING_VERBS: &[Verb] = &[
    verb(["buy", "buys", "bought"], ["kauft", "kaufen", "gekauft"]),
    verb(["find", "finds", "found"], ["findet", "finden", "gefunden"]),
    verb(["see", "sees", "saw"], ["sieht", "sehen", "gesehen"]),
    verb(
        ["carry", "carries", "carried"],
        ["trägt", "tragen", "getragen"],
    ),
    verb(["paint", "paints", "painted"], ["malt", "malen", "gemalt"]),
    verb(
        ["need", "needs", "needed"],
        ["braucht", "brauchen", "gebraucht"],
    ),
    verb(
        ["clean", "cleans", "cleaned"],
        ["putzt", "putzen", "geputzt"],
    ),
    verb(
        ["sell", "sells", "sold"],
        ["verkauft", "verkaufen", "verkauft"],
    ),
    verb(
        ["lose", "loses", "lost"],
        ["verliert", "verlieren", "verloren"],
    ),
    split(
        "ab",
        ["fetch", "fetches", "fetched"],
        ["holt", "holen", "geholt"],
    ),
    up(split(
        "auf",
        ["pick", "picks", "picked"],
        ["hebt", "heben", "gehoben"],
    )),
    split(
        "mit",
        ["take", "takes", "took"],
        ["nimmt", "nehmen", "genommen"],
    ),
];

/// With food as object.
pub(crate) const FOOD_VERBS: &[Verb] = &[
    verb(["eat", "eats", "ate"], ["isst", "essen", "gegessen"]),
    verb(
        ["taste", "tastes", "tasted"],
        ["probiert", "probieren", "probiert"],
    ),
    verb(["bake", "bakes", "baked"], ["bäckt", "backen", "gebacken"]),
];

/// With a text as object.
pub(crate) const TEXT_VERBS: &[Verb] = &[
    verb(
        ["print", "prints", "printed"],
        ["druckt", "drucken", "gedruckt"],
    ),
    verb(
        ["write", "writes", "wrote"],
        ["schreibt", "schreiben", "geschrieben"],
    ),
    split(
        "vor",
        ["recite", "recites", "recited"],
        ["trägt", "tragen", "getragen"],
    ),
];

/// With something that opens as object.
pub(crate) const OPENING_VERBS: &[Verb] = &[
    split(
        "auf",
        ["open", "opens", "opened"],
        ["macht", "machen", "gemacht"],
    ),
    split(
        "zu",
        ["close", "closes", "closed"],
        ["macht", "machen", "gemacht"],
    ),
    split(
        "ab",
        ["lock", "locks", "locked"],
        ["schließt", "schließen", "geschlossen"],
    ),
];

/// With a being as object.
pub(crate) const BEING_VERBS: &[Verb] = &[
    verb(["love", "loves", "loved"], ["liebt", "lieben", "geliebt"]),
    verb(["know", "knows", "knew"], ["kennt", "kennen", "gekannt"]),
    verb(
        ["visit", "visits", "visited"],
        ["besucht", "besuchen", "besucht"],
    ),
    split(
        "an",
        ["call", "calls", "called"],
        ["ruft", "rufen", "gerufen"],
    ),
    split(
        "ein",
        ["invite", "invites", "invited"],
        ["lädt", "laden", "geladen"],
    ),
];

/// Without object.
pub(crate) const PLAIN_VERBS: &[Verb] = &[
    verb(
        ["sleep", "sleeps", "slept"],
        ["schläft", "schlafen", "geschlafen"],
    ),
    verb(
        ["work", "works", "worked"],
        ["arbeitet", "arbeiten", "gearbeitet"],
    ),
    verb(
        ["play", "plays", "played"],
        ["spielt", "spielen", "gespielt"],
    ),
    verb(
        ["laugh", "laughs", "laughed"],
        ["lacht", "lachen", "gelacht"],
    ),
    verb(
        ["wait", "waits", "waited"],
        ["wartet", "warten", "gewartet"],
    ),
    verb(
        ["dance", "dances", "danced"],
        ["tanzt", "tanzen", "getanzt"],
    ),
    moves(
        "",
        ["swim", "swims", "swam"],
        ["schwimmt", "schwimmen", "geschwommen"],
    ),
    moves(
        "an",
        ["arrive", "arrives", "arrived"],
        ["kommt", "kommen", "gekommen"],
    ),
    up(moves(
        "auf",
        ["wake", "wakes", "woke"],
        ["wacht", "wachen", "gewacht"],
    )),
    split(
        "ein",
        ["shop", "shops", "shopped"],
        ["kauft", "kaufen", "gekauft"],
    ),
];

/// With a receiver (dative) and a thing (accusative).
pub(crate) const GIVING_VERBS: &[Verb] = &[
    verb(["give", "gives", "gave"], ["gibt", "geben", "gegeben"]),
    verb(["show", "shows", "showed"], ["zeigt", "zeigen", "gezeigt"]),
    verb(
        ["send", "sends", "sent"],
        ["schickt", "schicken", "geschickt"],
    ),
    verb(
        ["bring", "brings", "brought"],
        ["bringt", "bringen", "gebracht"],
    ),
];

/// Before a clause with "that": base, third person; German singular, plural.
pub(crate) const CLAUSE_VERBS: &[([&str; 2], [&str; 2])] = &[
    (["believe", "believes"], ["glaubt", "glauben"]),
    (["say", "says"], ["sagt", "sagen"]),
    (["hope", "hopes"], ["hofft", "hoffen"]),
    (["hear", "hears"], ["hört", "hören"]),
];

/// Modals, the same in both English persons but for "wants to": singular, plural; German singular, plural.
pub(crate) const MODALS: &[([&str; 2], [&str; 2])] = &[
    (["can", "can"], ["kann", "können"]),
    (["must", "must"], ["muss", "müssen"]),
    (["should", "should"], ["sollte", "sollten"]),
    (["may", "may"], ["darf", "dürfen"]),
    (["wants to", "want to"], ["will", "wollen"]),
    (["will", "will"], ["wird", "werden"]),
];
