"""Tells the language of a text and cuts it into words: by script, function words and letters, without a model.

In: any text. Out: an ISO 639-1 code, "" where nothing tells (a title, a name, two words), and words in lower case; of
Chinese, Japanese and Thai, which have no spaces, each character is a word. It must be the same on every machine, so no
optional package decides: the web engine, which sees whole pages, uses py3langid (`data/web/page.py`).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache

READ = 4000  # characters; a request or a plan says its language in far fewer

# Scripts that are (nearly) one language. Kana before Han: Japanese is written with both.
SCRIPTS = (
    ("ja", re.compile(r"[\u3041-\u30ff]")),
    ("ko", re.compile(r"[\uac00-\ud7af\u1100-\u11ff]")),
    ("zh", re.compile(r"[\u3400-\u9fff\U00020000-\U0002ffff]")),
    ("el", re.compile(r"[\u0370-\u03ff]")),
    ("he", re.compile(r"[\u0590-\u05ff]")),
    ("th", re.compile(r"[\u0e00-\u0e7f]")),
    ("hi", re.compile(r"[\u0900-\u097f]")),
    ("uk", re.compile(r"[\u0456\u0457\u0454\u0491]", re.I)),
    ("ru", re.compile(r"[\u0400-\u04ff]")),
    ("fa", re.compile(r"[\u067e\u0686\u0698\u06af\u06cc]")),
    ("ar", re.compile(r"[\u0600-\u06ff]")),
)
LATIN = re.compile(r"[A-Za-z\u00c0-\u024f\u1e00-\u1eff]")

# Function words, and the commonest words of requests and of instructions. A word of two languages counts half for each.
WORDS = {
    "en": """the a an and or of to in is are was it its that this these with for on at by from as be how what why when
        who which do does did can could would should will you your my me i we he she his her they their not no if
        then there have has please make tell show write give step steps story recipe guide into until about some
        one two three use help need want picture pictures images image let over under up out so but all each every
        after before am been who's i'm what's""",
    "de": """der die das den dem des ein eine einen einem einer eines und oder nicht ist sind war im in mit von zu zum
        zur auf für wie was warum wann wer wo ich du er sie es wir ihr mein meine dein bitte kann kannst man auch
        aus bei nach über wird werden sich dann schritt schritte geschichte bild bildern mache machen mir dich
        sein seine hat haben als an am vom um noch aber wenn dass nur zeig erzähl mach wieder durch jetzt alle
        jeder gib rezept anleitung""",
    "es": """el la los las un una unos unas y o de del al en es son era con por para que qué como cómo cuándo dónde
        quién cuál no se su sus mi tu me te lo le les hay muy más pero si sí este esta estos está hago hacer puedo
        pasos paso cuento historia receta imagen imágenes sobre sin hasta cada también luego después yo él ella
        nos ya por favor cuánto dime""",
    "fr": """le la les un une des du de et ou est sont était dans en avec pour par sur que qui quoi comment pourquoi
        quand où je tu il elle nous vous ils ne pas ce cette ces son sa ses mon ma mes au aux plus mais si très
        faire fais étapes étape histoire recette image images moi se puis jusqu'à c'est qu'est-ce quel quelle d'un
        d'une l'eau chaque""",
    "it": """il lo la i gli le un uno una e o di del della dei delle da in con per che chi come perché quando dove è
        sono era non si suo sua mio mia mi ti ci vi nel nella al alla sul più ma se questo questa fare faccio
        passi passo storia ricetta immagine immagini poi fino ogni anche molto qual quanto dello degli raccontami""",
    "pt": """o a os as um uma uns umas e ou de do da dos das em no na nos nas com por para que como quando onde quem
        não se seu sua meu minha me te lhe é são era mais mas muito este esta isso fazer faço passos passo
        história receita imagem imagens até cada também depois qual quanto favor você ele ela pelo pela ao à uma
        conte""",
    "nl": """de het een en of van in is zijn was met voor op te naar door bij uit niet dat die dit deze hoe wat waarom
        wanneer wie waar ik je jij hij zij ze we wij mijn jouw kan kun maak maken stappen stap verhaal recept
        afbeelding afbeeldingen er ook maar als dan om aan over tot worden wordt heeft hebben""",
    "sv": """en ett och eller att det den de som är var i på med för av till från inte om hur vad varför när vem jag du
        han hon vi ni min din sig kan ska gör göra steg berättelse recept bild bilder har men så efter över sedan""",
    "da": """en et og eller at det den de som er var i på med for af til fra ikke om hvordan hvad hvorfor hvornår hvem
        jeg du han hun vi min din sig kan skal gør lave trin historie opskrift billede billeder har men så efter
        over""",
    "pl": """i w na z do nie się jest są to że jak co dlaczego kiedy gdzie kto czy dla od po przez o za ale lub mój
        moja ja ty on ona my jego jej ten ta te zrobić kroki kroków historia przepis obraz obrazki przy oraz""",
    "cs": """a v na s z do ne se je jsou to že jak co proč kdy kde kdo pro od po přes o za ale nebo můj já ty on ona
        jeho její ten ta udělat kroky kroků příběh recept obrázek obrázky který která""",
    "tr": """ve bir bu şu o için ile de da ne nasıl neden niçin kim nerede ben sen biz siz değil mi mı var yok çok daha
        ama veya gibi kadar yapılır yaparım adım adımda hikaye tarif resim resimli sonra her""",
    "id": """dan di ke dari yang untuk dengan pada ini itu adalah tidak apa bagaimana mengapa kapan siapa saya kamu dia
        kami kita akan bisa cara membuat langkah cerita resep gambar sebuah seekor lalu kemudian setelah""",
    "vi": """và là của có không cho với trong này đó một những các tôi bạn làm thế nào như tại sao khi ai ở đâu cách
        bước câu chuyện hình ảnh rồi để được đến""",
    "fi": """ja on ei se että kuin mutta tai niin miten mitä miksi milloin kuka missä minä sinä hän me te he minun
        sitten myös voi tehdä vaihe vaihetta tarina resepti kuva kuvia kanssa""",
    "hu": """a az és vagy nem hogy van egy ez azt hogyan mit miért mikor ki hol én te ő mi meg is de csak lépés
        lépésben történet recept kép képek majd után""",
    "ro": """și sau de la în cu pentru din pe nu este sunt un o care ce cum când unde cine eu tu el ea noi mai dar dacă
        pași poveste rețetă imagine imagini apoi după fac""",
}  # fmt: skip
LETTERS = {
    "de": "ßäöü", "es": "ñ¿¡", "fr": "çêèëîïœ", "pt": "ãõ", "sv": "åäö", "da": "øæå", "pl": "łżźśćńąę",
    "cs": "řěůčžš", "tr": "şğı", "vi": "đơưạảấầẩẫậắằẳẵặẹẻẽếềểễệ", "hu": "őű", "ro": "ășțţş", "fi": "äö",
}  # fmt: skip


@cache
def _lists() -> dict[str, dict[str, float]]:
    """Returns word -> language -> weight."""
    found: dict[str, dict[str, float]] = {}
    for language, text in WORDS.items():
        for word in set(text.split()):
            found.setdefault(word, {})[language] = 1.0
    return {word: {one: 1.0 / len(of) for one in of} for word, of in found.items()}


def plain(text: str) -> str:
    """Returns a text as it is compared: one form of each letter and digit, straight quotes, single spaces."""
    text = unicodedata.normalize("NFKC", text).replace("\u2019", "'").replace("\u2018", "'").replace("\u00ad", "")
    return " ".join(text.split())


def language_of(text: str) -> str:
    """Returns the ISO 639-1 code of the language a text is written in; "" where too little of it tells."""
    text = plain(text[:READ]).lower()
    counts = {code: len(script.findall(text)) for code, script in SCRIPTS}
    latin = len(LATIN.findall(text))
    # A name or a loan word in Latin letters stands in many a Chinese sentence, and a character in few English ones.
    if (letters := sum(counts.values())) and letters * (3 if counts["zh"] or counts["ja"] else 1.5) >= latin:
        if counts["ja"] and counts["ja"] * 12 >= counts["zh"]:
            return "ja"
        if counts["uk"]:
            return "uk"
        counts["ja"] = 0
        if counts["fa"]:
            return "fa"
        return max(counts, key=lambda code: counts[code])
    scores: Counter[str] = Counter()
    lists = _lists()
    for word in re.findall(r"[^\W\d_]+(?:['-][^\W\d_]+)*", text):
        for language, weight in lists.get(word, {}).items():
            scores[language] += weight
    for language, letters in LETTERS.items():
        scores[language] += 0.4 * min(sum(text.count(letter) for letter in letters), 3)
    if not scores:
        return ""
    (best, score), *others = scores.most_common(2)
    # Spanish and Portuguese, Swedish and Danish share much: equal scores tell nothing.
    return best if score >= 0.5 and (not others or score > others[0][1]) else ""


# A word: letters and digits of one piece, an apostrophe or hyphen inside; or one character of a script without spaces.
_UNSPACED = r"\u3041-\u30ff\u3400-\u9fff\u0e00-\u0e7f\U00020000-\U0002ffff"
_LETTER = rf"(?:(?![{_UNSPACED}])[^\W_])"
WORD = re.compile(rf"[{_UNSPACED}]|{_LETTER}+(?:['-]{_LETTER}+)*")


def words_of(text: str) -> list[str]:
    """Returns the words of a text, in order and in lower case."""
    return WORD.findall(plain(text).lower())
