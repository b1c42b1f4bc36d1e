r"""What people say when they ask for a guide, a story, a plain answer, pictures or a number of parts; a table a language.

`requests.py` says how the tables are read. All patterns meet text in lower case, without what stands in quotation
marks. Adding a language is one more `Words` in `LANGUAGES`. No pattern has a repetition within a repetition without a
limit: requests are foreign text, and must not cost time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property


class Pattern:
    """A regular expression that is compiled when it is first used: a request needs those of one language."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern

    @cached_property
    def compiled(self) -> re.Pattern[str]:
        return re.compile(self.pattern)

    def search(self, text: str) -> re.Match[str] | None:
        return self.compiled.search(text)

    def finditer(self, text: str) -> Iterator[re.Match[str]]:
        return self.compiled.finditer(text)

    def sub(self, new: str, text: str) -> str:
        return self.compiled.sub(new, text)


@dataclass(frozen=True)
class Words:
    """kinds: (kind, strength, pattern): the strongest in a request counts, then the first that is no plain one.
    numbers: words that count. units: what parts are called, the finest division first: of "3 acts with 5 scenes" the
    scenes count. between: words that may stand between number and unit. alone: where one of something is no count.
    """

    kinds: tuple[tuple[str, int, Pattern], ...]
    task: Pattern  # work on a text that is given: what follows is data, not a wish
    numbers: dict[str, int]
    units: tuple[str, ...]
    between: str
    each: Pattern | None  # after a counted unit: it is a number for each part
    groups: tuple[tuple[Pattern, int], ...]  # "a picture for each season"
    most: str
    least: str
    or_more: str
    or_less: str
    to: str
    draw: Pattern  # asks for a picture of something
    one: Pattern  # … and for a single one
    pictures: Pattern
    no_pictures: Pattern
    not_wanted: Pattern | None = None  # a picture that is talked about, not asked for
    edit: Pattern | None = None
    code: Pattern | None = None
    fewer: str = "(?!)"  # "fewer than 6": one less
    more_than: str = "(?!)"
    spaced: bool = True
    joined: Pattern | None = None  # number and unit in one word: "vierteilig"


_p = Pattern


def _numbers(text: str) -> dict[str, int]:
    return {word: number for number, words in enumerate(text.split("|")) for word in words.split()}


# ------------------------------------------------------------ English

_ME = r"(?:me|us|them|him|her|people|someone|(?:my|our|the|a)\s(?:\w+\s){0,2}?\w+)"
_PRONOUN = r"(?:i|you|we|u|one|someone|somebody|people|y'all|they|he|she|my\s\w+)"
_STORY = (
    r"(?:(?<!user\s)(?:short\s|bedtime\s|good\s?night\s|campfire\s|ghost\s|love\s|picture\s|graphic\s|photo\s)?stor(?:y|ies)(?!\s(?:house|building|home"
    r"|high|tall|points?)\b)|fairy[\s-]?tales?|tales?|fables?|legends?|myths?|parables?|comics?(?!\s?sans)|comic[\s-](?:strips?|books?)|webcomics?"
    r"|manga|cartoons?|story[\s-]?boards?|picture[\s-]?books?|story[\s-]?books?|children'?s\sbooks?|kids'?\sbooks?|graphic\snovels?"
    r"|photo\s?novels?|adventures?|sagas?|nursery\stales?)"
)
_TELL = (
    r"(?:tell|write|make(?:\sup)?|create|invent|compose|spin|narrate|draw|draft|sketch|illustrate|design|generate|produce|build|craft|give"
    r"|need|want|wanna|love|like|have|continue|retell|show|think\sup|come\sup\swith|do|dream\sup|entertain|improvise|turn|surprise)"
)
_GUIDE = (
    r"(?:how[\s-]?to(?:\sguide)?|(?:visual\s|photo\s|picture\s|beginner'?s?\s|user\s|quick\s)?guides?(?!\s(?:dogs?|me|us)\b)|tutorials?|instructions?|recipes?|walk[\s-]?throughs?|manuals?"
    r"|step[\s-]by[\s-]steps?|procedures?|diy|lessons?|instructables?|cheat\ssheets?|directions)"
)
_PROCESS = (
    r"(?:life[\s-]?cycles?|stages|phases|process|steps|growth|evolution|metamorphosis|transformation|development|(?:water|rock|carbon)\scycle"
    r"|(?:life|growth|journey)\sof\b.{0,40}\bfrom\b|from\s\w+(?:\s\w+)?\s(?:in)?to\s|how\s(?:an?\s|the\s)?[\w\s]{1,30}?(?:turns?|grows?|becomes?|changes?|develops?|forms?|is\smade|are\smade|is\sbuilt|gets?\s\w+)\b)"
)
_PICTURE = r"(?:pictures?|images?|illustrations?|photos?|photographs?|drawings?|pics?|paintings?|sketches|visuals?|screenshots?|graphics|diagrams?)"
_POLITE = (
    r"^(?:(?:please|pls|plz|hi|hello|hey|ok|okay|so|well|now|and|or|but|also|then|just|quick\squestion|thanks?|dear\s\w+|anyway|yo)[\s,!:]*"
    r"|(?:can|could|would|will|cld)\s(?:you|u)(?:\sguys)?(?:\splease|\spls|\smaybe|\skindly|\spossibly|\slike\sto|\sbe\sable\sto|\smind)*\s"
    r"|(?:i'd|i\swould|i)\s(?:want|need|like|love)\s(?:you|u)?\s?to\s|i\s(?:was\s)?wonder(?:ing)?,?\s(?:if\s(?:you|u)\s(?:can|could)\s)?|let\sme\sknow\s|kindly\s"
    r"|i\s(?:want|need|would\slike)\sto\sknow\s|(?:do|does)\s(?:you|anyone|anybody|someone)\sknow\s|(?:can|could)\s(?:anyone|someone|anybody)\s|any\sidea\s"
    r"|i'm\scurious,?\s(?:about\s)?|i\sam\scurious,?\s|tell\sme,\s|tell\sme\s(?=who|what|when|where|why|which|how\s(?:many|much|long|old|far|tall|big))|question:\s|in\s(?:short|brief|a\snutshell|simple\swords),?\s)*"
)

ENGLISH = Words(
    kinds=(
        # ---- plain whatever else is there
        ("plain", 6, _p(r"^how\s(?:are|r)\s(?:you|u|things)\b|^how\sdo\syou\sdo\b|^how'?s\sit\sgoing|^what'?s\sup\b|^how\s(?:was|is)\s(?:your|the)\b|^what\scan\syou\sdo\b")),
        ("plain", 6, _p(r"\bhow\s(?:do|would|should|can|to)\s(?:(?:i|you|we|u|one)\s)?(?:say|spell|pronounce|translate|feel|define|cite)\b")),
        ("plain", 6, _p(r"\bhow\s(?:do|would|can)\s(?:i|you|we)\s(?:know|like|think|rate|call|mean)\b(?!\show)")),
        ("plain", 7, _p(r"\b(?:reasoning|think(?:ing)?|solv(?:e|ing)|solutions?|calculations?|equations?|derivation|proof|explain\syour|show\syour|math|answer)\b.{0,60}\bsteps?\b|\bsteps?\b.{0,30}\b(?:reasoning|solution|equation)\b")),
        ("plain", 6, _p(r"\bhow\swould\s(?:i|you|we|they|he|she)\s(?:describe|explain|introduce|define|declare|react|respond|handle|rate|compare|characteri[sz]e|summari[sz]e|answer|approach|go\sabout\sanswering|feel)\b|\bhow\sdo\syou\s(?:answer|feel|see)\b")),
        ("unsure", 6, _p(r"\bhow\s(?:can|could|do|would)\s(?:i|you|we|one)\s(?:determine|assess|evaluate|recogni[sz]e|tell|find\sout|decide)\b")),
        ("unsure", 6, _p(r"\bhow\s(?:do|can|to|would)\s(?:(?:i|you|we|one)\s)?(?:calculate|compute|convert|solve|prove|integrate|multiply|divide|count)\b")),
        ("plain", 6, _p(rf"{_POLITE}what(?:'s|\sis|\sare|\swas)\s(?:an?\s|the\sdifference|the\s(?:plot|moral|meaning|point|author|name|title|longest|oldest|most)\b)(?!\s?(?:good|great|easy|simple|quick|nice|best)\b)")),
        ("plain", 6, _p(rf"{_POLITE}(?:who|whose|whom|which(?!\ssteps)|when|where)(?:'s)?\b")),
        ("plain", 6, _p(rf"{_POLITE}how\s(?:many|much|old|far|tall|big|high|often|deep|heavy|hot|cold|wide|large|likely|fast|come|late|expensive|healthy|dangerous|safe)\b(?!.*\bhow\s(?:do|should|can)\s(?:i|we)\b)")),
        ("plain", 6, _p(rf"{_POLITE}(?:is|are|was|were|does|did|has|had)(?:n'?t)?\s(?!there\b)")),
        # ---- stories
        ("story", 5, _p(rf"\b{_TELL}\b(?:(?!\bhow\s(?:to|do|i|can)\b).){{0,90}}?\b{_STORY}\b")),
        ("story", 5, _p(rf"{_POLITE}(?:(?:an?|the|one|my|some|another|\d+|[a-z]+)[\s-](?:[\w'-]+[\s,]+){{0,5}}?)?{_STORY}\b(?:\s(?:sequence|episode|for|about|of|with|where|in|featuring|on|told|between|starring|set|set\sin|that|by|and|idea|please|pls|time)\b|\s?[,:]|\s?$)")),
        ("story", 5, _p(r"\bonce\s(?:upon\sa\stime\b|there\s(?:was|were|lived)\b)|\bas\s(?:an?\s)?(?:\w+\s){0,2}?(?:story|comic|fairy\s?tale|fable|comic\sstrip|picture\sbook)\b|\ba\sday\sin\sthe\slife\b")),
        ("story", 5, _p(r"\b(?:panel|scene|act|chapter|frame|episode|page)s?[\s-](?:\w+\s){0,2}?(?:comic|story|cartoon|tale|strip|adventure|storyboard|book|webcomic|drama|narrative|manga)")),
        ("story", 5, _p(r"\bstarring\b|\bmain\scharacters?\b|\bthe\shero(?:ine)?\sof\sthe\sstory\b|\b(?:can|could|may)\s(?:i|we)\shave\sa\b.{0,40}\bstory\b|\b(?:what|how)\sabout\sa\b.{0,40}\bstory\b")),
        ("story", 4, _p(r"^(?:please\s)?(?:narrate|retell|continue)\b|^(?:in\s)?[\w-]+\s(?:[a-z]+\s)?(?:scenes|panels)\b|\bscene[\s-]by[\s-]scene\b|\bpanel[\s-]by[\s-]panel\b|\b(?:panels|scenes)\b(?=.*\b(?:where|in\swhich|who|about)\b)|\bhappily\sever\safter\b|\bpick\sup\sthe\sstory\b")),
        ("story", 2, _p(rf"\b{_STORY}\b")),
        # ---- how-tos
        ("howto", 5, _p(rf"\bhow\s(?:do|can|could|should|would|shall|might|must|did)\s{_PRONOUN}\b|\bhow\sdoes\sone\b")),
        ("howto", 5, _p(r"\bhow\s?(?:to|2)\b|\bhow-to\b")),
        ("howto", 5, _p(r"\bhow\s(?:i|you|we|u|one|people)\s(?:can\s|could\s|should\s|would\s|best\s|might\s|go\sabout\s|properly\s)?(?!(?:are|am|feel|was|were|know|think)\b)[a-z]+")),
        ("howto", 5, _p(rf"\b(?:walk|talk|guide|lead|take)\s{_ME}\s(?:through|thru)\b|\bteach\s{_ME}?\s?(?:to|how|the|some|a)?\b|\bshow\s{_ME}\show\b(?!\s(?:many|much|old|far|tall|big))|\b(?:explain|show|demonstrate|describe)\b.{{0,40}}\bhow\s(?:to|i|you|we|one)\b")),
        ("howto", 5, _p(r"\bstep[\s-]by[\s-]step\b|\bstep\sby\sstep\b|\bone\sstep\sat\sa\stime\b|\bfirst,?\ssecond,?\s(?:and\s)?third\b|\bfrom\sstart\sto\sfinish\b")),
        ("howto", 5, _p(rf"\b(?:write|make|create|give|need|want|like|show|get|send|provide|prepare|design|generate|produce|have|looking\sfor|find|share|craft|do|find\sme|is\sthere|draw|draft|any|got|what(?:'s|\sis|\sare)(?:\sthe|\sa|\syour|\ssome)?(?:\s(?:good|great|best|easy|simple|quick|nice|usual|basic|proper|right|correct|favou?rite))?)\b(?:(?!\bhow\s(?:do|can)\b).){{0,70}}?\b{_GUIDE}\b")),
        ("howto", 5, _p(rf"{_POLITE}(?:(?:an?|the|some|my)\s)?(?:[\w'-]+[\s,]+){{0,5}}?{_GUIDE}(?:\s(?:for|to|on|of|with|how|about|in|that|please|pls|using|without|from)\b|\s?[,:.]|\s?$)")),
        ("howto", 5, _p(r"\b(?:tips|advice|hints|help|hacks|pointers|trouble|assistance)\s(?:me\s|us\s)?(?:for|on|with|in)?\s?(?!understanding|deciding|choosing|picking|finding|writing|naming|being|nothing|something|anything|everything|studying|preparing|improving)[a-z]{2,}ing\b")),
        ("howto", 5, _p(r"\b(?:show|explain|describe|tell|teach|illustrate)\b.{0,50}\bhow\s(?:he|she|they)\b|\bshow(?:ing)?\b.{0,30}?\b(?:each|every|all|the)\s(?:of\sthe\s)?(?:\w+\s)?(?:stages?|steps?|phases?)\b|\b(?:of|for)\s(?:each|every)\s(?:step|stage|phase)\b|\bstroke\sby\sstroke\b|\bfrom\sscratch\b")),
        ("howto", 5, _p(r"\bwhat\s(?:do|should|must|would|shall|can|does)\s(?:i|we|one)\s(?:have\sto\s|need\sto\s|got\sto\s)?do\b|\bwhat\sdo\s(?:i|we|you)\sneed\sto\sdo\b|\bwhat\sto\sdo\b|\btell\s(?:me|us)\swhat\sto\sdo\b")),
        ("howto", 5, _p(r"\b(?:best|right|correct|proper|easiest|easy|quickest|quick|fastest|safest|simplest|good|cheapest|cleanest|traditional|classic|neat|better|only|usual)\s(?:ways?|methods?|techniques?)\s(?:to|of|for)\b|\bways?\sto\s\w+|\b(?:the\s)?trick\s(?:to|for|of|is)\b|\bknack\s(?:to|of)\b")),
        ("howto", 5, _p(r"(?:^|\b(?:the|what|which|all|some|any|basic|exact|easy|simple|clear|give|list|me|need|these|correct|right|following|\d+|two|three|four|five|six|seven|eight|nine|ten)[\s-](?:[a-z-]+\s){0,2}?)steps?\s(?:to|for|of|in|on|needed|required|involved|do|are\sneeded|should|must)\b|\b(?:what|which)\ssteps\s(?:do|should|must|are|to|would|will|can|turn|lead|get|make)\b|\b(?:\w+|\d+)[\s-](?:[a-z]+[\s,-]+){0,3}?steps?\b(?=[\s,:.!?-]*(?:guide|tutorial|routine|process|plan|recipe|please|pls|for|to|on|of|how|from|max|$))")),
        ("howto", 5, _p(r"\b(?:break|split|divide)\b.{0,60}\b(?:down|into)\b.{0,40}\b(?:steps?|stages?|parts?|phases?)\b|\bin\s(?:\w+[\s-]){1,4}?(?:steps|stages|phases)\b")),
        ("howto", 5, _p(r"\b(?:want|need|like|trying|going|love|wanna|have|hoping|plan|planning)\s?(?:me\s|us\s)?(?:to\s)?(?:learn|build|bake|cook|assemble|repair|fix|sew|knit|crochet|install|grow|change|replace|clean|plant|brew|craft)\b(?!\s(?:about|more\sabout|my\smind))")),
        ("howto", 5, _p(r"\bhelp\s(?:me|us|my\s\w+)\s(?:to\s)?(?:fix|build|assemble|repair|make|cook|bake|fold|tie|sew|knit|clean|install|change|replace|set\sup|put|plant|grow|draw|paint|learn|get|unclog|remove|wrap|pack|decorate|hang|mount|tune|train|prepare)\b|\blet'?s\s(?:build|make|bake|cook|craft|fold|draw|sew|grow|plant)\b")),
        ("howto", 5, _p(rf"\b(?:show|illustrate|visuali[sz]e|depict|demonstrate|draw|walk|picture|images?\sof|pictures\sof)\b.{{0,50}}?\b(?:{_PROCESS}|how\s)(?!many|much)")),
        ("howto", 5, _p(r"\bplan\b.{0,20}\b(?:in|with)\s(?:\w+\s)?(?:pictures|images|drawings|photos)\b|\bvisual\s(?:plan|guide|tutorial|steps|walkthrough|explanation|instructions)\b|\b(?:routine|poses|stretches|workout|drill|moves)\b.{0,20}(?:$|[:,.])|\bmake\sa\splan\b|\bshow\sall\s\w+\s(?:poses|stages|steps|moves|positions)\b")),
        ("howto", 4, _p(r"^(?:fold|bake|knit|crochet|sew|assemble|origami)ing?\b.{3,}|^origami\s\w+")),
        ("howto", 2, _p(rf"\b{_GUIDE}\b")),
        # ---- how things work: a picture may help, or not
        ("unsure", 4, _p(rf"\b(?:describe|explain|outline|present|go\sthrough)\b.{{0,50}}?\b{_PROCESS}\b")),
        ("unsure", 4, _p(r"\bhow\s(?:does|do|did|is|are|was|were)\s(?!(?:i|you|we|u|it\s(?:cost|take))\b)|\bhow\s(?:an?|the|\w+s)\s\w+")),
        # ---- plain questions and tasks
        ("plain", 3, _p(rf"{_POLITE}(?:what|why|how\s(?:long|well|good|bad|about|does\sit\stake)|is|are|was|were|am|do|does|did|can|could|should|would|will|has|have|had|may|might|isn'?t|aren'?t|doesn'?t|don'?t|if\s)(?:'s|'re)?\b")),
        ("plain", 3, _p(rf"{_POLITE}(?:define|list|name|calculate|compute|convert|solve|explain|describe|compare|recommend|suggest|tell\s(?:me|us)\s(?:about|something|more|everything|a\sjoke|the|whether|if)|discuss|classify|rank|count|evaluate|simplify|remind|answer|help)\b")),
        ("plain", 3, _p(r"\b(?:write|compose|draft|make|create|give|need|generate|suggest|find|recommend)\b.{0,50}?\b(?:e-?mails?|poems?|haikus?|essays?|(?:cover\s)?letters?|quer(?:y|ies)|functions?|scripts?|programs?|code|songs?|speech(?:es)?|bios?|reviews?|posts?|tweets?|captions?|slogans?|paragraphs?|articles?|blogs?|summar(?:y|ies)|resumes?|cv|jokes?|riddles?|limericks?|lyrics|headlines?|names|synonyms|antonyms|reasons|facts|ideas|examples|tips|words|quotes?|books|films|movies|songs|arguments|questions|sentences?|report|press\srelease|toast|sonnet|descriptions?|message|excuse|lists?|tables?|checklists?|playlists?|surveys?|budgets?|outlines?|templates?|syllabus|itinerary|schedule|hooks?|titles?|tagline|ads?|ticket|hashtags|phrases|advice|suggestions?|analysis|explanation|definitions?|compliments?|proverb|analogy|comparison|opinion|acronym|motto|algorithm|class|regular\sexpression|dialogue|script|categor(?:y|ies))\b")),
        ("plain", 2, _p(rf"{_POLITE}(?:write|complete|continue\sthe\ssentence|fill|identify|verify|prove|decide|choose|pick|select|review|implement|develop|generate|provide|return|output|find|enter|expand|think\sof|come\sup\swith|tell\sif|check|detect|rate|improve|notify|look\sfor|consider|imagine|pretend|act\sas|assume|embody|curate|notice|organi[sz]e|schedule|format|sort|group|match|replace|use|analy[sz]e|discuss|argue|debate|research|brainstorm|invent|make\sup|give\s(?:me\s)?(?:an?|some|the|your)|tell\s(?:me|us))\b")),
        ("plain", 1, _p(r"\?$")),
        ("plain", 3, _p(r"^(?:[\w-]+\s){0,3}(?:facts|reasons|ideas|examples|synonyms|quotes|names|tips|jokes|definition|summary|symptoms|causes|benefits)\b")),
        ("plain", 3, _p(r"\bpros\sand\scons\b|\btop\s(?:\d+|ten|five|three)\b|\bdifferences?\sbetween\b|\bmeaning\sof\b|\bsynonyms?\s(?:for|of)\b|\b(?:capital|population|currency|president)\sof\b|\bin\swhich\s(?:year|country|city|month|century)\b|\bwhat\s(?:year|time|date|day)\b|\bwhat\sdoes\b|\bvs\.?\s|\bis\s(?:that|this|it)\s(?:true|right|correct|normal|ok|safe)\b")),
        ("plain", 3, _p(r"(?:\d|\))\s*(?:[+*/×÷^=]|-\s|x\s?(?=\d))\s*(?:\d|\(|\?|$)|\d\s?%\s?of\b|\bsquare\sroot\b|\b(?:plus|minus|times|divided\sby)\s(?:\d|\w+\?)")),
        ("plain", 3, _p(r"[:,]\s(?:who|where|when|why|what|which)(?:'s)?\s(?:is|are|was|were|do|does|did|has|have|happens|would|\w+ed)\b|\bhow\smany\b")),
        ("plain", 2, _p(r"^(?:hi|hello|hey|yo|good\s(?:morning|evening|afternoon|night)|thanks?|thank\syou|thx|ty|cheers|bye|goodbye|ok(?:ay)?|cool|great|nice|lol|yes|no|sure|welcome)\b[^.]{0,30}$")),
    ),
    task=_p(rf"{_POLITE}(?:translate|summari[sz]e|paraphrase|proof-?read|rephrase|reword|rewrite|shorten|correct|(?:fix|check|improve|correct)\s(?:the|my|this|its)\s(?:grammar|spelling|text|sentences?|punctuation|wording|email|essay|letter|code)|edit\s(?:this|the|my)\s(?:text|sentence|paragraph|email|essay|letter)|spell[\s-]?check|extract|tl;?dr|classify|categori[sz]e|label|predict|you\s(?:are|will\sbe|have\sbeen)\s(?:given|provided|asked)|answer\sthe\sfollowing|given\s(?:the|an?|two|some|these|a\sset)\b(?!.{{0,120}}\b(?:story|recipe|comic|how\sto)\b)|in\sthis\stask|capitali[sz]e|detect|complete\sthe|fill\sin)\b(?!.{{0,60}}\b(?:as|into)\sa\s(?:comic|story|picture\sbook|storyboard))"),
    numbers=_numbers("|one single|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve dozen|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen|twenty") | {"half a dozen": 6, "a dozen": 12},
    units=(
        r"(?:steps?|panels?|scenes?|frames?|beats?|shots?|slides?|poses?|moves?|instructions?|panes?|key\smoments?|moments?|squares?(?=\scomic)|spreads?|postures?|cards?)",
        r"(?:stages?|phases?|episodes?|stretches|stations)",
        r"(?:parts?|chapters?|acts?|sections?)",
        r"(?:pages?)",
        _PICTURE,
    ),
    between=r"(?:(?!(?:of|in|for|to|on|with|and|or|at|from|by|as|than|people|persons?|minutes?|mins?|hours?|seconds?|days?|weeks?|months?|years?|kids?|children|friends?|eggs?|cups?|grams?|ml|words?|lines?|pounds?|dollars?|euros?|percent|degrees?|cm|m|km|miles?|feet|inches|boys|girls|is|are|was|that|which|who|per|a|an|the|not)\b)[a-z][a-z'-]*,?[\s-]+){0,4}?",
    each=_p(r"^\s?(?:per\b|for\s(?:each|every)\b|a\sstep\b|at\sa\stime|after\s(?:the\s|an)?other|by\sone\b|each(?=\s?(?:$|[.,;!?]|step|scene|page|one\b))|away\b|ahead\b|back\b|later\b|missing\b|long\b|behind\b|of\s(?:kindness|congress|parliament|flour|water|sugar|sand|milk|oil|butter|my|your|his|her|their|our)\b)"),
    groups=(
        (_p(r"\b(?:each|every|all)\s(?:of\sthe\s(?:four\s|4\s)?)?seasons?\b"), 4),
        (_p(r"\b(?:each|every)\s(?:of\sthe\s(?:seven\s|7\s)?)?(?:days?\sof\sthe\sweek|weekdays?)\b"), 7),
        (_p(r"\b(?:each|every)\s(?:of\sthe\s(?:twelve\s|12\s)?)?months?(?:\sof\sthe\syear)?\b"), 12),
        (_p(r"\b(?:each|every)\s(?:of\sthe\s(?:eight\s|8\s)?)?planets?\b"), 8),
    ),
    most=r"(?:at\s(?:the\s)?(?:most|max(?:imum)?)|max(?:imum|imal|imally)?\.?(?:\sof)?|no\smore\sthan|not\smore\sthan|up\sto|not\sover|limit(?:ed)?(?:\s\w+)?\sto|within|not\sexceeding)",
    least=r"(?:at\s(?:the\s)?least|min(?:imum|imal)?\.?(?:\sof)?|no\s(?:fewer|less)\sthan|not\s(?:fewer|less)\sthan)",
    fewer=r"(?:fewer\sthan|less\sthan|under|below)",
    more_than=r"(?:(?<!no\s)(?<!not\s)more\sthan|over)",
    or_more=r"(?:\+|or\smore|plus|and\sup|at\s(?:the\s)?least|min(?:imum)?)",
    or_less=r"(?:or\s(?:less|fewer)|at\s(?:the\s)?most|max(?:imum)?|tops)",
    to=r"(?:\s?-\s?|\s?–\s?|\sto\s|\sor\s|\sand\s)",
    draw=_p(rf"{_POLITE}(?:(?:i\s(?:want|need)|i'd\slike|give\sme|get\sme|show\sme)\s)?(?:draw(?!\s(?:up|on|from|the\sline|a\s(?:conclusion|comparison|line|parallel))\b)|paint|sketch|illustrate|render|doodle)\b|{_POLITE}(?:(?:make|create|generate|produce|design|show|give|i\s(?:want|need)|i'd\slike|need|want|get)\s(?:me\s|us\s)?)?(?:(?:an?|the|one|some|\d+|\w+)\s)?(?:[\w'-]+[\s,]+){{0,4}}?(?:picture|image|illustration|photo|photograph|drawing|pic|painting|sketch|poster|logo|icon|portrait|wallpaper|watercolou?r)e?s?\s(?:of|with|showing|that\sshows?|where|for|from)\b"),
    one=_p(r"\b(?:an?|one|single)\s(?:[\w'-]+[\s,]+){0,4}?(?:picture|image|illustration|photo|photograph|drawing|pic|painting|sketch|poster|logo|icon|portrait|wallpaper)\b|^(?:[\w\s']{0,30}\s)?(?:draw|paint|sketch|illustrate|render|doodle)\s(?:me\s|us\s)?(?:an?|the|my|our|one|this)\b"),
    pictures=_p(
        rf"\b(?:with|including|includ(?:e|ing)|and|add(?:ing)?|us(?:e|ing)|want|need|plus|some|lots\sof|many|in|show(?:ing|s)?|through|give\sme|see|both|via|need)\s(?:\w+[\s-]){{0,4}}?(?<!draw\s){_PICTURE}\b(?!\s(?:book|frame|wall|me\sas))"
        rf"|\b{_PICTURE}\s(?:included|for|of|per|in|on|at|showing|telling|depicting|explaining|that\sshows?|too|as\swell|please|pls|to\sgo)\b|\b{_PICTURE}\s?:"
        rf"|\billustrat(?:e|ed|ing)\b|\bin\s(?:pictures|images)\b|\bvisual(?:ly|\s(?:[\w-]+\s){{0,2}}?(?:guide|tutorial|plan|instructions|steps|story|aid|walkthrough|explanation))\b|\bvisuali[sz]e\b|\b(?:photo|picture|image)\s(?:guide|story|tutorial|series|sequence)\b"
        r"|^(?:please\s|now\s|can\syou\s|could\syou\s|pls\s)*(?:draw(?!\s(?:up|on|from)\b)|paint|sketch)\b"
    ),
    no_pictures=_p(
        rf"\b(?:no|without|don'?t|do\snot|not?|skip|leave\sout|omit|never|zero|minus|forget)\s(?:\w+[\s-]){{0,5}}?{_PICTURE}\b|\b(?:text|words?|writing)[\s-]only\b|\b(?:only|just|purely|simply|plain)\s(?:the\s|in\s|as\s|with\s|plain\s)?(?:text|words|writing)\b|\bas\s(?:plain\s)?text\b|\bin\swords\b|\bunillustrated\b|\bnothing\svisual\b|\btext[\s-]based\b"
    ),
    not_wanted=_p(rf"\b(?:hang|hanging|frame|framing|print|printing|upload|uploading|delete|sort|scan|resize|take|taking|took|post|send|download|crop|mount|mounting|edit|back\sup|organi[sz]e|transfer|recover|retouch|develop|steal|compress|save|restore|attach|insert|draw|read|drawing)\s(?:\w+[\s-]){{0,4}}?{_PICTURE}\b|\b{_PICTURE}\s(?:i|we|you|he|she)\b|\b(?:my|your|her|his|our|their|this|that|these|those)\s(?:\w+\s){{0,2}}?{_PICTURE}\b"),
    edit=_p(rf"{_POLITE}(?:make|turn|change|remove|delete|erase|add|put|replace|recolou?r|colou?r|paint|move|give|swap|crop|rotate|flip|mirror|brighten|darken|blur|sharpen|enlarge|shrink|resize|convert|transform|restyle|edit|retouch|fix|clean\sup|extend|zoom|set|take\s(?:away|out)|get\srid\sof|let|draw|place|cut\sout|undo|keep|rais(?:e)|lower|straighten|restore|colori[sz]e|now\s(?:in|with|without|as)|in\sthe\sstyle|without|with|same)\b"),
    code=_p(r"\b(?:python|javascript|typescript|java(?=\s(?:code|class|program|script|list|array|string))|c\+\+|c#|golang|sql|mysql|postgres|regex|regular\sexpression|git|github|bash|docker|kubernetes|npm|pip|css|html|json|yaml|excel|spreadsheet|vlookup|numpy|pandas|django|vim|dataframe|linux|stack\soverflow|latex|powershell|api)\b|\bc\+\+"),
)  # fmt: skip

# ------------------------------------------------------------ German

_BITTE = (
    r"^(?:(?:bitte|hallo|hi|hey|moin|guten\s(?:tag|morgen|abend)|servus|also|und|ok|so|danke|liebe\w*\s\w+|kurze\sfrage)[\s,!:]*"
    r"|(?:kannst|könntest|würdest|können|könnten|würden)\s(?:du|sie|ihr)(?:\s(?:mir|uns|bitte|mal|vielleicht|kurz))*\s|(?:weißt\sdu|wissen\ssie|weiß\sjemand|sag\s(?:mir|mal)|ich\s(?:möchte|will|würde\sgerne?)\swissen|ich\sfrage\smich),?\s)*"
)
_BILD = (
    r"(?:\w*bild(?:er|ern|chen)?|fotos?|\w*illustration(?:en)?|\w*zeichnung(?:en)?|abbildung(?:en)?|skizzen?|grafiken)"
)
_GESCHICHTE = r"(?:\w*(?<!vor)(?<!sozial)(?<!kunst)geschichten?|\w*märchen|comics?|comic[\s-]?strips?|manga|fabeln?|sagen?|legenden?|bilderb(?:uch|ücher)|storyboards?|erzählungen?|\w*abenteuer|graphic\snovels?|bildergeschichten?)"
_ANLEITUNG = r"(?:\w*anleitung(?:en)?|tutorials?|\w*rezepte?|schritt[\s-]für[\s-]schritt|leitfaden|\w*ratgeber|diy|einführung|lehrgang)"

GERMAN = Words(
    kinds=(
        ("plain", 6, _p(r"\bwie\s(?:geht(?:'s|\ses)?\s(?:dir|ihnen|euch)|geht'?s$|heißt|heißen|viele?|viel\b|alt|lange|weit|groß|hoch|teuer|oft|tief|schwer|spät|warm|kalt|heiß|schnell\s(?:ist|fährt|läuft|kann|fliegt)|wird\sdas\swetter|ist\b|war\b)|\bwie\s(?:sagt|schreibt|spricht)\sman\b|\bwie\skommt\ses\b")),
        ("unsure", 6, _p(r"\bwie\s(?:berechne|rechne|löse)\b|\bwie\s(?:berechnet|rechnet|löst)\sman\b")),
        ("plain", 6, _p(rf"{_BITTE}(?:wer|wessen|wem|wen|wann|wo|woher|wohin|warum|wieso|weshalb|welche[rsmn]?|wieviele?|in\swelche[rm]|was\s(?:ist|sind|war|bedeutet|heißt|kostet|bringt))\b")),
        ("plain", 4, _p(r"\b(?:die|der)\sgeschichte\s(?:der|des|von|eines|einer|\w+s\b)|\bgeschichte\s(?:deutschlands|europas|roms|österreichs)|\berzähl\w*\s(?:mir|uns)\s(?:etwas\s|was\s|mehr\s)?über\b")),
        ("story", 5, _p(rf"\b(?:erzähl\w*|schreib\w*|mach\w*|erfinde\w*|zeichne\w*|male?|denk\w*|gib|brauche?|möchte|will|hätte|wünsch\w*|erstell\w*|entwirf|les\w*|lies|ersinne|dichte|illustriere|generiere|kreiere)\b(?:(?!\bwie\b).){{0,90}}?\b{_GESCHICHTE}\b(?!\s(?:der|des)\s(?:stadt|welt|menschheit|kunst|musik|physik|\w+ung)\b)")),
        ("story", 5, _p(rf"{_BITTE}(?:(?:eine?n?|die|das|den|\d+)\s)?(?:[\w-]+,?\s){{0,4}}?{_GESCHICHTE}(?:\s(?:für|von|vom|über|mit|um|mit|in|wo|zum|zu|aus|bitte|auf)\b|\s?[,:]|\s?$)|\bes\swar\seinmal\b|\berzähl\w*\s(?:mir|uns|ihr|ihm|meinen?\s\w+)?\s?(?:bitte\s)?(?:von|vom)\b|\bals\s(?:comic|märchen|geschichte|bildergeschichte)\b")),
        ("story", 5, _p(r"\b(?:szenen?|panels?|kapiteln?)\b.{0,40}\b(?:über|von|mit|in\sden?en)\b|\bein\stag\sim\sleben\b")),
        ("story", 2, _p(rf"\b{_GESCHICHTE}\b")),
        ("howto", 5, _p(r"\bwie\s(?:kann|könnte|soll|sollte|muss|würde|darf|lässt\ssich)\s|\bwie\s(?:mach|back|koch|falt|bau|näh|strick|reinig|wechsl|pflanz|bind|zeichn|mal|bastl|repar|putz|leg|setz|stell|häng|schneid|bring|bekomm|krieg|lern|fang|zieh|tausch|flick|mont|install|entkalk|pfleg|knot|roll|bereit|brat|grill|form|wickl|stimm|züchte|säe|schmier|ölt?|öffn|zünd|spann|lös|wasch|bügl|pack|häkel|filz|gieß|impf|verleg|streich|tapezier|schleif|schärf|föhn|flecht|schmink|töpfer|dreh|heb|halt)\w*\s(?:(?:ich|man|wir|du|ihr|sie)\b)|\bwie\s\w+(?:e|t)\s(?:ich|man|wir)\b|\bwie\s(?:man|ich|wir)\b|\bwie\s(?:das|es|sowas|so\setwas)\sgeht\b|\bwie\s(?:werden|wird)\s\w+(?:\s\w+){0,3}\s(?:gemacht|gebaut|gebacken|gefaltet|gepflanzt|hergestellt|zubereitet)\b")),
        ("howto", 5, _p(r"\bschritt(?:e|en)?[\s-](?:für|by)[\s-]\w+|\bschritte\s(?:zum|zur|um|für|sind|brauche|muss)\b|\bin\s(?:\w+\s){1,3}schritt(?:en)?\b|\b(?:\d+|\w+)[\s-]schritte?[\s-]\w+|\bnacheinander\b|\bbring\s(?:mir|uns|meine[mnr]?\s\w+)\s.{0,40}\bbei\b|\b(?:zeig\w*|erklär\w*|hilf|helf\w*)\s(?:mir|uns|meine[mnr]?\s\w+)?\s?.{0,30}\b(?:beim?|wie|dabei)\b|\bbeim\s\w+.{0,40}\bhelfen\b")),
        ("howto", 5, _p(rf"{_BITTE}(?:[\w'-]+[\s,]+){{0,8}}?{_ANLEITUNG}(?:\s|\s?[,:.]|$)|\bwas\s(?:muss|soll|kann)\s(?:ich|man)\s.{{0,30}}?\b(?:tun|machen)\b|\bwie\sgeht\s(?!es\b)\w+|\b(?:möchte|will|würde\sgerne?)\s.{{0,60}}\b(?:lernen|bauen|backen|basteln|nähen|reparieren)\b")),
        ("howto", 5, _p(r"\b(?:zeig\w*|illustriere|stell\w*)\b.{0,50}\b(?:lebenszyklus|kreislauf|entwicklung|phasen|stadien|wie\saus|ablauf|entstehung)\b|\bdie\sbeste\s(?:art|methode|weise)\b|\bam\s(?:besten|einfachsten|schnellsten)\b")),
        ("unsure", 4, _p(r"\bwie\s\w+t?\b")),
        ("plain", 3, _p(rf"{_BITTE}(?:was|ist|sind|war|hat|haben|kann|darf|muss|soll|gibt|wird|werden|stimmt|nenne?|zähle?|definiere?|berechne|rechne|erkläre?|beschreibe?|vergleiche?|empfiehl|liste|schreib\w*\s(?:mir\s)?(?:eine?n?\s)?(?:\w+\s)?(?:e-?mail|gedicht|brief|bewerbung|aufsatz|text|rede))\b|\d\s*[+*/x×-]\s*\d|\bunterschied\szwischen\b|\bhauptstadt\b")),
        ("plain", 2, _p(r"^(?:hallo|hi|moin|guten\s(?:tag|morgen|abend)|danke|tschüss|servus|gute\snacht)\b.{0,20}$")),
    ),
    task=_p(rf"{_BITTE}(?:übersetz\w*|fass\w*\b.{{0,40}}\bzusammen|zusammenfass\w*|korrigier\w*|formulier\w*|kürz\w*)\b"),
    numbers=_numbers("|einen einer einem|zwei|drei|vier|fünf|sechs|sieben|acht|neun|zehn|elf|zwölf dutzend|dreizehn|vierzehn|fünfzehn"),
    units=(
        r"(?:schritte?n?|szenen?|panels?|szenenbilder?n?|einstellungen|momenten?|folien|handgriffen?|posen)",
        r"(?:phasen?|etappen?|stationen|stufen|stadien|episoden?)",
        r"(?:teilen?|kapiteln?|akten?|abschnitten?)",
        r"(?:seiten?)",
        r"(?:bilder[n]?|bild|fotos?|illustrationen|illustration|zeichnungen|zeichnung|abbildungen|abbildung)",
    ),
    between=r"(?:(?!(?:in|für|mit|von|und|oder|auf|zu|personen|leute|minuten|stunden|tage|wochen|kinder|eier|gramm|ist|sind|der|die|das|pro|jede\w*)\b)[a-zäöüß-]+,?[\s-]+){0,3}?",
    each=_p(r"^\s?(?:pro\b|je\b|für\sjede\w*|nach\sde[rm]\sanderen|entfernt)"),
    groups=((_p(r"\bjede[rs]?\s(?:der\svier\s)?jahreszeit(?:en)?\b"), 4), (_p(r"\bjede[nr]?\s(?:tag\sder\swoche|wochentag)\b"), 7), (_p(r"\bjede[nr]?\smonat\b"), 12)),
    most=r"(?:höchstens|maximal|max\.?|bis\szu|nicht\smehr\sals)",
    least=r"(?:mindestens|wenigstens|min\.?|nicht\sweniger\sals)",
    fewer=r"(?:weniger\sals|unter)",
    more_than=r"(?:(?<!nicht\s)mehr\sals|über(?=\s\d+\s(?:schritt|bild|szen)))",
    or_more=r"(?:\+|oder\smehr|mindestens)",
    or_less=r"(?:oder\sweniger|höchstens|maximal)",
    to=r"(?:\s?-\s?|\s?–\s?|\sbis\s|\soder\s)",
    draw=_p(rf"{_BITTE}(?:(?:zeichne|male?|skizziere|illustriere)\b|(?:(?:mach|erstell|gib|zeig|ich\s(?:möchte|will|brauche)|generiere)\w*\s(?:mir\s)?)?(?:eine?|das|\w+)\s(?:\w+\s){{0,2}}?(?:bild(?:er)?|foto|zeichnung|illustration|gemälde)\s(?:von|vom|mit|eine[rs]|in)\b)"),
    one=_p(r"\beine?\s(?:\w+\s){0,2}?(?:bild|foto|zeichnung|illustration|gemälde)\b|^(?:bitte\s)?(?:zeichne|male?)\s(?:mir\s)?(?:eine?n?|den|die|das)\b"),
    pictures=_p(rf"\b(?:mit|inklusive|samt|in|und|zu\sjede\w+|als|ein|eine)\s(?:\w+\s){{0,3}}?(?!bilderb){_BILD}\b(?!ung)|\b{_BILD}\s(?:zu|für|pro|dazu|bitte|von|je)\b|\bbebildert\w*|\billustriert\w*|\billustriere\b|\b(?:zeichne|male?)\s|\bvisuell\w*|^(?:\w+\s){{1,2}}{_BILD}\b"),
    no_pictures=_p(rf"\b(?:ohne|keine?|nicht)\s(?:\w+\s){{0,3}}?{_BILD}\b|\b(?:nur|bloß|lediglich|reiner?)\s(?:als\s|den\s)?text\b|\bals\stext\b|\bin\sworten\b|\btext\sgenügt\b"),
    not_wanted=_p(rf"\b(?:mein\w*|dein\w*|dies\w+)\s(?:\w+\s)?{_BILD}\b|\b{_BILD}\s(?:aufhängen|auf\shängen|hochladen|drucken|an\s(?:die|der|einer)\swand)"),
    edit=_p(rf"{_BITTE}(?:mach\w*|änder\w*|färb\w*|entfern\w*|lösch\w*|füg\w*|setz\w*|ersetz\w*|dreh\w*|tausch\w*|verwandl\w*|lass\w*|gib|nimm|bearbeit\w*|vergrößer\w*|verkleiner\w*|male?)\b"),
    code=ENGLISH.code,
    joined=_p(r"\b(?P<number>zwei|drei|vier|fünf|sechs|sieben|acht|neun|zehn|zwölf)(?:teilig|seitig|schrittig|stufig)\w*"),
)  # fmt: skip

# ------------------------------------------------------------ Spanish

_POR_FAVOR = (
    r"^(?:(?:por\sfavor|porfa|hola|buenas|buenos\sd[ií]as|oye|bueno|y|pues|gracias|ok|una\spregunta)[\s,!¡:]*|¿|¡"
    r"|(?:puedes|podr[ií]as|me\spuedes|me\spodr[ií]as|podr[ií]a|puede|quiero\sque|quisiera\sque|me\sgustar[ií]a\sque|necesito\sque)\s(?:por\sfavor\s)?|(?:sabes|alguien\ssabe|me\sgustar[ií]a\ssaber|quiero\ssaber|dime)\s)*"
)
_IMAGEN = r"(?:im[aá]gen(?:es)?|fotos?|fotograf[ií]as?|ilustraci(?:ones|ón|on)|dibujos?|l[aá]minas?)"
_CUENTO = r"(?:cuentos?|cuentitos?|historietas?|historias?|f[aá]bulas?|leyendas?|relatos?|c[oó]mics?|tebeos?|mangas?|guion(?:es)?\sgr[aá]ficos?|storyboards?|novelas?\sgr[aá]ficas?|libros?\s(?:de\sim[aá]genes|ilustrados?|infantil(?:es)?)|[aá]lbum\silustrado|aventuras?|vi[nñ]etas)"
_GUIA = r"(?:gu[ií]as?|tutorial(?:es)?|recetas?|instrucciones|paso\sa\spaso|manual(?:es)?|instructivos?|procedimiento)"

SPANISH = Words(
    kinds=(
        ("plain", 6, _p(r"\bc[oó]mo\s(?:est[aá]s?|te\sllamas|se\s(?:dice|escribe|llama|pronuncia|deletrea)|te\sva|digo|es\b|son\b|era\b)|\bqu[eé]\stal\b|\bc[oó]mo\ses\sque\b")),
        ("unsure", 6, _p(r"\bc[oó]mo\s(?:se\s)?(?:calcul|resuelv|conviert)\w+")),
        ("plain", 6, _p(rf"{_POR_FAVOR}(?:qui[eé]n(?:es)?|cu[aá]ndo|d[oó]nde|por\squ[eé]|cu[aá]l(?:es)?|cu[aá]nt[oa]s?|qu[eé]\s(?:es|son|significa|hora|a[nñ]o|pas[oó]|diferencia|era|fue)|de\squ[eé]|en\squ[eé])\b")),
        ("plain", 6, _p(r"\b(?:la|sobre\sla|de\sla)\shistoria\s(?:de|del)\s(?!(?:un|una|dos|tres|el|los|mi)\b)|\bh[aá]blame\s(?:de|sobre)\b")),
        ("story", 5, _p(rf"\b(?:cu[eé]nta\w*|cuentes|escrib\w*|haz\w*|hacer|hagas|crea\w*|inventa\w*|dibuja\w*|quiero|necesito|dame|narra\w*|contin[uú]a|lee\w*|prepara|imagina|dise[nñ]a|elabora|genera|redacta|quisiera|gustar[ií]a)\b(?:(?!\bc[oó]mo\b).){{0,80}}?\b{_CUENTO}\b")),
        ("story", 5, _p(rf"{_POR_FAVOR}(?:(?:una?|el|la|\d+)\s)?(?:[\w-]+,?\s){{0,3}}?{_CUENTO}(?:\s(?:para|de|del|sobre|con|en|donde|infantil|corto|corta|ilustrad\w+|sobre|por)\b|\s?[,:]|\s?$)|\bhab[ií]a\suna\svez\b|\b[eé]rase\suna\svez\b|\bun\sd[ií]a\sen\sla\svida\b|\b(?:en\sforma\sde|como)\s(?:un\s)?(?:c[oó]mic|cuento)\b")),
        ("story", 5, _p(r"\b(?:escenas?|vi[nñ]etas?)\b.{0,40}\b(?:sobre|de|con|donde|en\slas?\sque)\b")),
        ("story", 2, _p(rf"\b{_CUENTO}\b")),
        ("howto", 5, _p(r"\bc[oó]mo\s(?:(?:puedo|podemos|puede\suno|se\s(?:puede|hace|hacen|cambia|prepara|monta|limpia|dobla|planta|cocina|construye|arregla|instala|teje|dibuja|pinta|repara|corta|cose|toca|juega|usa|quita|pone|coloca|cuece|fr[ií]e|poda|riega|ata|lava|siembra|afina|forma|elabora|fabrica|\w+a|\w+e)|debo|deber[ií]a|tengo\sque|hago|hacemos|haces|har[ií]as?|hacer|preparo|cocino|limpio|cambio|doblo|monto|planto|arreglo|dibujo|aprendo|logro|consigo|quito|pongo|instalo|construyo|tejo|\w+o\b|\w+[aei]r(?:lo|la|me|los|las)?\b))")),
        ("howto", 5, _p(r"\bpaso\sa\spaso\b|\bpasos\s(?:para|a\sseguir|de|necesito)\b|\ben\s(?:\w+\s){1,3}(?:pasos|etapas|fases)\b|\bens[eé][nñ]a(?:me|nos|le)?\b.{0,40}\ba\b|\bens[eé][nñ](?:ame|anos|arme)\b|\b(?:mu[eé]stra|expl[ií]ca|di)(?:me|nos|le)?\s(?:por\sfavor\s)?c[oó]mo\b|\bqu[eé]\s(?:debo|tengo\sque|hay\sque|puedo)\shacer\b|\b(?:la\s)?mejor\s(?:manera|forma)\sde\b|\bforma\s(?:f[aá]cil|r[aá]pida)\sde\b|\b(?:quiero|quisiera|me\sgustar[ií]a)\s(?:aprender|hacer|construir|cocinar|preparar|plantar|montar)\b|\bay[uú]da(?:me|nos)\sa\b")),
        ("howto", 5, _p(rf"{_POR_FAVOR}(?:[\w'áéíóúñ-]+[\s,]+){{0,6}}?{_GUIA}(?:\s|\s?[,:.]|$)|\b(?:ciclo\sde\s(?:vida|agua)|etapas\sde|fases\sde)\b")),
        ("unsure", 4, _p(r"\bc[oó]mo\s")),
        ("plain", 3, _p(rf"{_POR_FAVOR}(?:qu[eé]|es|son|hay|est[aá]|tiene|se\spuede|puedo|define|lista|nombra|calcula|explica|describe|compara|recomi[eé]nda\w*|enumera|menciona|dime|escrib\w*\s(?:un\s|una\s)?(?:correo|poema|carta|ensayo|art[ií]culo|discurso))\b|\d\s*[+*/x×-]\s*\d|\bdiferencia\sentre\b|\bcapital\sde\b|\bpor\s?qu[eé]\s")),
        ("plain", 2, _p(r"^(?:hola|buenas|buenos\sd[ií]as|gracias|adi[oó]s|buenas\s(?:tardes|noches))\b.{0,20}$")),
    ),
    task=_p(rf"{_POR_FAVOR}(?:trad[uú]ce\w*|traducir|resume\w*|resumir|corrige\w*|corregir|parafrasea\w*|reescrib\w*)\b"),
    numbers=_numbers("|una|dos|tres|cuatro|cinco|seis|siete|ocho|nueve|diez|once|doce docena|trece|catorce|quince"),
    units=(
        r"(?:pasos?|escenas?|vi[nñ]etas?|paneles|cuadros|planos|diapositivas|momentos)",
        r"(?:etapas?|fases?|episodios?)",
        r"(?:partes?|cap[ií]tulos?|actos?|secciones)",
        r"(?:p[aá]ginas?)",
        r"(?:im[aá]genes|imagen|fotos?|fotograf[ií]as?|ilustraciones|ilustraci[oó]n|dibujos?|l[aá]minas?)",
    ),
    between=r"(?:(?!(?:de|del|en|para|con|y|o|a|por|personas|minutos|horas|d[ií]as|huevos|ni[nñ]os|es|son|que)\b)[a-záéíóúñ]+,?\s){0,2}?",
    each=_p(r"^\s?(?:por\b|para\scada\b|a\spaso\b|cada\suno)"),
    groups=((_p(r"\bcada\s(?:una\sde\slas\s(?:cuatro\s)?estaciones|estaci[oó]n(?:\sdel\sa[nñ]o)?)\b"), 4), (_p(r"\bcada\sd[ií]a\sde\sla\ssemana\b"), 7), (_p(r"\bcada\smes\b"), 12)),
    most=r"(?:como\sm[aá]ximo|m[aá]ximo(?:\sde)?|a\slo\ssumo|no\sm[aá]s\sde|hasta)",
    least=r"(?:al\smenos|como\sm[ií]nimo|m[ií]nimo(?:\sde)?|por\slo\smenos|no\smenos\sde)",
    fewer=r"(?:menos\sde)",
    more_than=r"(?:(?<!no\s)m[aá]s\sde)",
    or_more=r"(?:\+|o\sm[aá]s|como\sm[ií]nimo)",
    or_less=r"(?:o\smenos|como\sm[aá]ximo|m[aá]ximo)",
    to=r"(?:\s?-\s?|\s?–\s?|\sa\s|\so\s)",
    draw=_p(rf"{_POR_FAVOR}(?:(?:dibuja|pinta|ilustra|boceta)\w*\s|(?:(?:haz|crea|dame|quiero|genera|mu[eé]stra)\w*\s)?(?:una?|\w+)\s(?:\w+\s)?(?:imagen|foto|dibujo|ilustraci[oó]n|im[aá]genes|cuadro)\s(?:de|del|con)\b)"),
    one=_p(r"\buna?\s(?:\w+\s)?(?:imagen|foto|dibujo|ilustraci[oó]n|cuadro)\b|^(?:por\sfavor,?\s)?(?:dib[uú]ja|pinta)\w*\s(?:una?|el|la)\b"),
    pictures=_p(rf"\b(?:con|y|incluye|incluyendo|en|usa|a[nñ]ade|quiero|agrega|por\smedio\sde)\s(?:\w+\s){{0,3}}?{_IMAGEN}\b|\b{_IMAGEN}\s(?:para|por|de|en|del)\b|\bilustrad[oa]s?\b|\bil[uú]stra\w*\b|\bdib[uú]ja(?:me|nos)?\s|\bp[ií]nta(?:me)?\s|\bvisual(?:es)?\b|^(?:\w+\s){{1,2}}{_IMAGEN}\b"),
    no_pictures=_p(rf"\b(?:sin|no|ningun[ao]?)\s(?:\w+\s){{0,3}}?{_IMAGEN}\b|\b(?:solo|sólo|[uú]nicamente|solamente|nada\sm[aá]s)\s(?:el\s|con\s|en\s)?(?:texto|palabras)\b|\btexto\ssolo\b|\bs[oó]lo\stexto\b"),
    not_wanted=_p(rf"\b(?:mis?|tus?|esta|este|colgar|imprimir|subir)\s(?:\w+\s)?{_IMAGEN}\b|\bdibujo\s(?:yo|un)\b"),
    edit=_p(rf"{_POR_FAVOR}(?:haz|pon|cambia|quita|elimina|a[nñ]ade|agrega|borra|reemplaza|convierte|gira|pinta|mueve|colorea|transforma|sustituye)\w*\b"),
    code=ENGLISH.code,
)  # fmt: skip

# ------------------------------------------------------------ Chinese, simplified and traditional

_QING = r"^(?:请问?|請問?|麻烦你?|麻煩你?|你?能不能|你?可以|可不可以|帮我|幫我|给我|給我|我想|我要|想|你好[,，!！]?|您好[,，!！]?|能否|能)*"
_TU = r"(?:图片|圖片|插图|插圖|配图|配圖|图示|圖示|图解|圖解|照片|图画|圖畫|插画|插畫|图|圖)"
_GUSHI = (
    r"(?:故事|童话|童話|寓言|漫画|漫畫|绘本|繪本|分镜|分鏡|连环画|連環畫|神话|神話|传说|傳說|图画书|圖畫書|历险记|冒险)"
)

CHINESE = Words(
    kinds=(
        ("plain", 6, _p(r"怎么(?:样|说|读|念|称呼)|怎麼(?:樣|說|讀|念)|怎样称呼|你好吗|你好嗎|为什么|為什麼|为何|為何|是什么意思")),
        ("unsure", 5, _p(r"(?:是)?(?:怎么|怎样|如何|怎麼|怎樣)(?:工作|运作|運作|形成|产生|產生|运行|運行|发生|發生|来的)")),
        ("story", 5, _p(rf"{_GUSHI}(?!的?(?:作者|主角|主人公)是谁|是什么|是谁|好看吗)|从前|從前|很久很久以前|讲述|的一天$")),
        ("howto", 5, _p(r"怎么|怎麼|怎样|怎樣|如何|咋(?:做|弄|办|折)|步骤|步驟|教程|做法|食谱|食譜|菜谱|菜譜|指南|指导|指導|一步一步|一步步|逐步|分步|教会?我|教教|教一下|教学|教學|攻略|流程|折法|画法|用法|说明书|方法(?!论)|生命周期|生长过程|过程图|手把手")),
        ("plain", 5, _p(r"什么是|什麼是|是什么|是什麼|是谁|是誰|谁|誰|哪里|哪裡|哪儿|哪个|哪個|哪一|哪年|哪些|多少|多大|多高|多远|多遠|多长|多長|多久|几点|幾點|几个|几岁|什么时候|什麼時候|区别|區別|不同|首都|吗[？?]?$|嗎[？?]?$|解释|解釋|介绍|介紹|定义|等于|列出|列举|推荐|推薦|写一(?:封|首|篇|段)|寫一(?:封|首|篇|段)|\d\s*[+*/x×÷-]\s*\d|意思")),
        ("plain", 2, _p(r"^(?:你好|您好|谢谢|謝謝|早上好|晚安|再见|再見)")),
    ),
    task=_p(rf"{_QING}(?:翻译|翻譯|总结|總結|概括|改写|改寫|润色|修改|纠正|校对|把.{{0,80}}(?:翻译|翻譯|译成|譯成))"),
    numbers={**{word: number for number, word in enumerate("〇一二三四五六七八九十")}, "两": 2, "兩": 2, "十一": 11, "十二": 12, "十五": 15, "二十": 20},
    units=(
        r"(?:个|個)?(?:步骤|步驟|场景|場景|镜头|鏡頭|分镜|画面|畫面)|步|格|幕|幅(?:漫画|分镜)",
        r"(?:个|個)?(?:阶段|階段)",
        r"(?:个|個)?(?:部分|章节|章節)|章|节|段(?=故事|，|。|$)",
        r"页|頁",
        r"(?:张|張|幅|个|個)(?:[\u4e00-\u9fff]{0,3}?)(?:图片|圖片|插图|插圖|照片|图画|图|圖|画|畫)|张(?!桌|椅|床|纸|紙)|幅",
    ),
    between=r"(?:个|個)?(?:简单|簡單|容易|清楚)?的?",
    each=_p(r"^(?:一(?:步|个)|之)"),
    groups=((_p(r"(?:每个|每個|四个?|四個?)季节?"), 4),),
    most=r"(?:最多|至多|不超过|不超過|不多于)",
    least=r"(?:至少|最少|不少于|不少於)",
    fewer=r"(?:少于|少於)",
    more_than=r"(?:(?<!不)多于|超过|超過)",
    or_more=r"(?:以上|或更多)",
    or_less=r"(?:以内|以內|以下|或更少)",
    to=r"(?:到|至|-|–|~|或)",
    draw=_p(rf"{_QING}(?:画|畫|绘制|繪製|生成|来)(?:一|几|两|三|四|\d)?(?:张|張|幅|个|個|只|隻|条|條|朵|座|棵)"),
    one=_p(r"一(?:张|張|幅)|(?:画|畫|绘制|繪製)一?(?:只|隻|条|條|朵|座|棵|个|個)(?!(?:[一二三四五六七八九十\d]+)(?:格|幅|页))"),
    pictures=_p(rf"(?:配|带|帶|附|有|加|要|用|和)(?:上|着|有)?{_TU}|图文|圖文|{_TU}(?:说明|說明|展示|演示)|^{_QING[1:]}(?:画|畫)|看图|图解|圖解|[张張幅](?:{_TU}|画|畫)|插图|插圖|可视化"),
    no_pictures=_p(rf"(?:不要|不用|无需|無需|不需要|没有|沒有|无|無|别|不带|不配|不必)(?:加|配|带|用|有|画)?{_TU}|纯文字|純文字|只(?:要|用|需|需要)?文字|文字(?:就行|即可|就好|版)"),
    edit=_p(rf"{_QING}(?:把|将|將|去掉|去除|删除|刪除|换|換|改成|加上|添加|变成|變成|让|讓)"),
    code=_p(r"python|javascript|java|代码|程序|编程|sql|函数|正则|excel"),
    spaced=False,
)  # fmt: skip

# ------------------------------------------------------------ French, Italian, Portuguese, Japanese: the common ways alone


def _romance(
    polite: str,
    story: str,
    tell: str,
    once: str,
    guide: str,
    how: str,
    steps: str,
    plain: str,
    how_plain: str,
    task: str,
    numbers: str,
    units: tuple[str, ...],
    small: str,
    picture: str,
    with_: str,
    without: str,
    only_text: str,
    draw: str,
    one: str,
    edit: str,
    limits: tuple[str, ...],
    to: str,
) -> Words:
    most, least, more_than, fewer = limits
    return Words(
        kinds=(
            ("plain", 6, _p(how_plain)),
            ("plain", 6, _p(rf"{polite}(?:{plain})")),
            ("story", 5, _p(rf"\b(?:{tell})\b(?:(?!\b{how}).){{0,80}}?\b(?:{story})\b|{once}")),
            ("story", 5, _p(rf"{polite}(?:(?:{one}|\d+)\s)?(?:[\w-]+,?\s){{0,3}}?(?:{story})(?:\s|\s?[,:]|$)")),
            ("howto", 5, _p(rf"\b{how}")),
            ("howto", 5, _p(rf"{steps}|{polite}(?:[\w'-]+[\s,]+){{0,6}}?(?:{guide})(?:\s|\s?[,:.]|$)")),
            ("plain", 1, _p(r"\?$")),
        ),
        task=_p(rf"{polite}(?:{task})\b"),
        numbers=_numbers(numbers),
        units=units,
        between=rf"(?:(?!(?:{small})\b)[\w']+,?\s){{0,1}}?",
        each=_p(r"^\s?(?:par|per|por)\s"),
        groups=(),
        most=most,
        least=least,
        more_than=more_than,
        fewer=fewer,
        or_more=r"\+",
        or_less=r"(?!)",
        to=to,
        draw=_p(rf"{polite}(?:{draw})"),
        one=_p(rf"\b(?:{one})\s(?:\w+\s)?(?:{picture})\b|{polite}(?:{draw})\s(?:{one})\b"),
        pictures=_p(rf"\b(?:{with_})\s(?:\w+\s){{0,3}}?(?:{picture})\b|\bil+ustr\w+\b|\bvisu[ae]l\w*"),
        no_pictures=_p(rf"\b(?:{without})\s(?:\w+\s){{0,3}}?(?:{picture})\b|\b(?:{only_text})\b"),
        edit=_p(rf"{polite}(?:{edit})\b"),
        code=ENGLISH.code,
    )


FRENCH = _romance(
    polite=r"^(?:(?:bonjour|salut|svp|s'il\s(?:te|vous)\splaît|merci|alors|et)[\s,!]*|(?:peux-tu|pouvez-vous|pourrais-tu|pourriez-vous|tu\speux|est-ce\sque\stu\speux)\s)*",
    story=r"histoires?|contes?|bandes?\sdessinées?|bd|fables?|légendes?|récits?|aventures?|albums?\sillustrés?|storyboards?|manga",
    tell=r"racont\w+|écri\w+|invent\w+|fai(?:s|tes)|imagin\w+|crée\w*|dessin\w+|veux|voudrais|aimerais|donne\w*|illustr\w+",
    once=r"\bil\sétait\sune\sfois\b|\bun\sjour\sdans\sla\svie\b",
    guide=r"guide|tutoriel|tuto|recette|mode\sd'emploi|instructions|étapes|notice",
    how=r"comment\s(?:\w+er|\w+ir|\w+re|(?:puis|peut|dois|doit|est-ce\sque|je|on|se)[\s-])",
    steps=r"\bétape\spar\sétape\b|\bpas\sà\spas\b|\ben\s(?:\w+\s)?étapes\b|\b(?:montre|explique|apprends|dis|apprenez|montrez|expliquez)-(?:moi|nous)\b.{0,30}\b(?:comment|à)\b|\bla\s(?:meilleure\s)?(?:façon|manière)\sde\b",
    plain=r"qui|quand|où|pourquoi|combien|quel(?:le)?s?|qu'est-ce|est-ce\sque|c'est\squoi|défini\w+|calcul\w+|traduis",
    how_plain=r"\bcomment\s(?:ça\sva|vas-tu|allez-vous|dit-on|s'appelle|t'appelles|s'écrit|se\sprononce)",
    task=r"tradui\w+|résum\w+|corrig\w+|reformul\w+",
    numbers="|une un|deux|trois|quatre|cinq|six|sept|huit|neuf|dix|onze|douze",
    units=(r"(?:étapes?|scènes?|cases?|vignettes?|plans)", r"(?:phases?|épisodes?)", r"(?:parties?|chapitres?|actes?)", r"(?:pages?)", r"(?:images?|photos?|dessins?|illustrations?)"),
    small="de|du|en|dans|pour|et|ou|personnes|minutes|heures|jours|œufs|enfants|avec|sur",
    picture=r"images?|photos?|dessins?|illustrations?", with_="avec|et|en|ajoute|inclus", without="sans|pas\\sde?|aucune?",
    only_text=r"(?:juste|seulement|uniquement)\s(?:du\s|le\s)?texte|texte\sseul(?:ement)?",
    draw=r"dessin\w+|pein\w+|(?:une?|crée\s\w+|fais\s\w+|génère\s\w+)\s(?:image|photo|illustration)\s(?:de|d')?",
    one="une?", edit=r"mets?|rends?|change\w*|ajoute\w*|enlève\w*|supprime\w*|remplace\w*|fais|colorie\w*|retire\w*",
    limits=(r"(?:au\splus|maximum|max\.?|jusqu'à|pas\splus\sde)", r"(?:au\smoins|minimum)", r"(?:(?<!pas\s)plus\sde)", r"(?:moins\sde)"),
    to=r"(?:\s?-\s?|\sà\s|\sou\s)",
)  # fmt: skip

ITALIAN = _romance(
    polite=r"^(?:(?:ciao|salve|buongiorno|per\sfavore|grazie|allora|e)[\s,!]*|(?:puoi|potresti|può|potrebbe|mi\spuoi|mi\spotresti)\s)*",
    story=r"stori(?:a|e)|fiab[ae]|favol[ae]|fumett[oi]|leggend[ae]|raccont[oi]|avventur[ae]|storyboard|albo\sillustrato|manga",
    tell=r"racconta\w*|scriv\w+|inventa\w*|crea\w*|fa(?:i|mmi)|disegna\w*|vorrei|voglio|dammi|illustra\w*|continua",
    once=r"\bc'era\suna\svolta\b",
    guide=r"guida|tutorial|ricetta|istruzioni|passaggi|manuale",
    how=r"come\s(?:\w+[aei]re?|\w+rmi|\w+rlo|si\s|posso|faccio|devo|potrei|si\spuò|preparo|pianto|piego|\w+o\b)",
    steps=r"\bpasso\s(?:dopo|per|a)\spasso\b|\bin\s(?:\w+\s)?(?:passi|passaggi|fasi)\b|\b(?:mostra|spiega|insegna|dim)mi\b.{0,30}\b(?:come|a)\b|\bil\smodo\s(?:migliore\s)?(?:per|di)\b",
    plain=r"chi|quando|dove|perché|quant[oaie]|qual[ei]?|che\scos'?\s?è|cos'?\s?è|cosa\ssignifica|definisci|calcola|è\b",
    how_plain=r"\bcome\s(?:stai|va|ti\schiami|si\sdice|si\schiama|si\sscrive|si\spronuncia|mai)\b",
    task=r"traduci\w*|riassumi\w*|correggi\w*|riscrivi\w*",
    numbers="|uno una un|due|tre|quattro|cinque|sei|sette|otto|nove|dieci|undici|dodici",
    units=(r"(?:passi|passo|passaggi|scene?|vignett[ae]|riquadri)", r"(?:fasi|fase|episodi)", r"(?:parti|parte|capitoli|atti)", r"(?:pagin[ae])", r"(?:immagin[ei]|foto|disegn[io]|illustrazion[ei])"),
    small="di|del|in|per|e|o|persone|minuti|ore|giorni|uova|bambini|con|su",
    picture=r"immagin[ei]|foto|disegn[io]|illustrazion[ei]|figure", with_="con|e|in|aggiungi|includi", without="senza|niente|nessuna?|non",
    only_text=r"(?:solo|soltanto)\s(?:il\s)?testo", draw=r"disegna\w*|dipingi\w*|(?:un'?a?|crea\s\w+)\s?(?:immagine|foto|illustrazione)\sdi",
    one="una?|un'", edit=r"metti|rendi|cambia|aggiungi|togli|rimuovi|sostituisci|fai|colora|elimina",
    limits=(r"(?:al\smassimo|massimo|fino\sa|non\spiù\sdi)", r"(?:almeno|minimo)", r"(?:(?<!non\s)più\sdi)", r"(?:meno\sdi)"),
    to=r"(?:\s?-\s?|\sa\s|\so\s)",
)  # fmt: skip

PORTUGUESE = _romance(
    polite=r"^(?:(?:olá|oi|bom\sdia|por\sfavor|obrigad[oa]|então|e)[\s,!]*|(?:você\s)?(?:pode|poderia|podes|podia)\s(?:me\s)?)*",
    story=r"histórias?|contos?|fábulas?|lendas?|quadrinhos|banda\sdesenhada|tirinha|aventuras?|livro\s(?:ilustrado|infantil)|storyboard|mangá",
    tell=r"cont[ea]\w*|escrev\w+|invent\w+|cri[ea]\w*|faç?[ao]\w*|desenh\w+|quero|gostaria|imagin\w+|ilustr\w+|continue",
    once=r"\bera\suma\svez\b",
    guide=r"guia|tutorial|receita|instruções|manual|passos",
    how=r"como\s(?:\w+[aeio]r\b|eu\s|posso|faço|devo|se\s|fazer|preparo|planto|\w+o\b)",
    steps=r"\bpasso\sa\spasso\b|\bem\s(?:\w+\s)?(?:passos|etapas|fases)\b|\b(?:mostr[ea]|expli(?:que|ca)|ensin[ea])(?:-me)?\b.{0,30}\b(?:como|a)\b|\b(?:melhor\s)?(?:maneira|forma|jeito)\sde\b",
    plain=r"quem|quando|onde|por\s?qu[eê]|quant[oa]s?|qual|quais|o\sque\s(?:é|são|significa)|defina|calcule|é\b",
    how_plain=r"\bcomo\s(?:está|vai|você\sestá|se\s(?:diz|chama|escreve|pronuncia)|é\b)",
    task=r"traduz\w*|resum\w+|corrij\w+|reescrev\w+",
    numbers="|uma um|duas dois|três|quatro|cinco|seis|sete|oito|nove|dez|onze|doze",
    units=(r"(?:passos?|cenas?|quadros?|quadrinhos|painéis)", r"(?:etapas?|fases?|episódios)", r"(?:partes?|capítulos?|atos)", r"(?:páginas?)", r"(?:imagens|imagem|fotos?|desenhos?|ilustraç(?:ões|ão))"),
    small="de|do|em|para|e|ou|pessoas|minutos|horas|dias|ovos|crianças|com|por",
    picture=r"imagens|imagem|fotos?|desenhos?|ilustraç(?:ões|ão)", with_="com|e|em|adicione|inclua", without="sem|não|nenhuma?",
    only_text=r"(?:só|somente|apenas)\s(?:o\s)?texto", draw=r"desenh\w+|pint\w+|(?:uma|crie\s\w+)\s(?:imagem|foto|ilustração)\sd[eo]",
    one="uma?", edit=r"coloque|deixe|mude|troque|adicione|tire|remova|substitua|faça|pinte",
    limits=(r"(?:no\smáximo|até|não\smais\sde)", r"(?:pelo\smenos|no\smínimo)", r"(?:(?<!não\s)mais\sde)", r"(?:menos\sde)"),
    to=r"(?:\s?-\s?|\sa\s|\sou\s)",
)  # fmt: skip

JAPANESE = Words(
    kinds=(
        ("plain", 6, _p(r"なぜ|どうして|とは何|って何|何ですか|誰|いつ|どこ|いくつ|何人|何個|いくら|どれくらい|意味|英語で|違いは|首都|ですか[？?]?$(?<!のですか)")),
        ("story", 5, _p(r"物語|お話(?:を|に)|おはなし|童話|昔話|むかしむかし|漫画|マンガ|絵本|コマ漫画|ストーリー|絵コンテ|冒険")),
        ("howto", 7, _p(r"方法|作り方|やり方|折り方|仕方|しかた|育て方|描き方|使い方|手順|レシピ|ステップ|どうやって|どうすれば|どのように(?:して)?(?!働)|教えて(?=.*(?:方|手順))|説明書|チュートリアル|ガイド")),
        ("plain", 1, _p(r"[？?]$|か。?$")),
    ),
    task=_p(r"(?:翻訳|要約|訳して|添削)"),
    numbers={**{word: number for number, word in enumerate("〇一二三四五六七八九十")}},
    units=(r"(?:つの)?(?:ステップ|手順|工程|場面|シーン|コマ|段階|カット)", r"(?:つの)?(?:部|章|パート)", r"ページ", r"(?:枚|つ)の?(?:絵|画像|写真|イラスト)"),
    between=r"(?:個の)?",
    each=_p(r"^ずつ"),
    groups=(),
    most=r"(?:最大|多くても)", least=r"(?:少なくとも|最低)", or_more=r"以上", or_less=r"以内|以下", to=r"(?:から|〜|~|-)",
    draw=_p(r"(?:絵|イラスト|画像)を(?:描いて|かいて|作って|生成)|を描いて"),
    one=_p(r"(?:絵|イラスト|画像)を(?:描いて|かいて|作って|生成)|を描いて"),
    pictures=_p(r"(?:絵|画像|写真|イラスト|図)(?:付き|つき|を(?:つけ|付け|入れ|使)|で(?:説明|教え|見せ)|入り|と一緒)|を描いて"),
    no_pictures=_p(r"(?:絵|画像|写真|イラスト|図)(?:なし|は(?:いらない|不要)|無し)|文字だけ|テキストだけ|文章だけ"),
    edit=_p(r"(?:にして|変えて|消して|追加して|取って|直して)"),
    spaced=False,
)  # fmt: skip

LANGUAGES = {
    "en": ENGLISH, "de": GERMAN, "es": SPANISH, "zh": CHINESE, "fr": FRENCH, "it": ITALIAN, "pt": PORTUGUESE,
    "ja": JAPANESE,
}  # fmt: skip
