"""Facts people tell about themselves: attributes, phrasings and values, with disjoint parts for training and test."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

HELD_OUT_WORDS = 2000


@dataclass(frozen=True, slots=True)
class Attribute:
    """One thing a person can tell. The last `held_out` statements and questions never occur in training."""

    name: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str
    values: str
    """Name of the closed list that typical values come from."""
    held_out: int = 2

    def phrasings(self, split: str) -> tuple[Sequence[str], Sequence[str]]:
        """Statements and questions of `split` ("train" or "test")."""
        cut = -self.held_out
        if split == "test":
            return self.statements[cut:], self.questions[cut:]
        return self.statements[:cut], self.questions[:cut]


@dataclass(frozen=True, slots=True)
class Fact:
    """One attribute with its value."""

    attribute: Attribute
    value: str


VALUES: dict[str, tuple[str, ...]] = {
    "person": tuple(
        "Anna Boris Carla David Elena Felix Greta Hugo Irene Jonas Klara Liam Maria Nora Oscar Paula Quentin Rosa "
        "Simon Tara Ulrich Vera Walter Xenia Yusuf Zoe Amir Bianca Cedric Dana Emil Fiona".split()
    ),
    "city": tuple(
        "Oslo Lisbon Vienna Prague Dublin Madrid Berlin Paris Rome Athens Cairo Lagos Nairobi Delhi Tokyo Seoul Sydney "
        "Boston Chicago Denver Seattle Toronto Lima Havana Zurich Geneva Warsaw Munich".split()
    ),
    "job": tuple(
        "teacher,nurse,farmer,lawyer,baker,pilot,painter,plumber,dentist,chemist,engineer,librarian,carpenter,"
        "journalist,butcher,florist,mechanic,musician,architect,translator".split(",")
    ),
    "pet": tuple(
        "Rex Bella Max Luna Charlie Milo Daisy Rocky Coco Buddy Simba Nala Toby Ruby Oreo Pepper Ginger Bruno Shadow "
        "Biscuit".split()
    ),
    "food": tuple(
        "pizza,sushi,pasta,curry,salad,soup,bread,cheese,chocolate,pancakes,tacos,noodles,rice,lasagna,dumplings,steak,"
        "mushrooms,strawberries".split(",")
    ),
    "color": (
        "red", "blue", "green", "yellow", "purple", "orange", "pink", "brown", "black", "white", "turquoise", "gray"
    ),
    "hobby": tuple(
        "painting,chess,fishing,cycling,gardening,swimming,climbing,dancing,cooking,photography,hiking,knitting,running,"
        "sailing,pottery,archery".split(",")
    ),
    "word": tuple(
        "apple,river,candle,mountain,falcon,garden,silver,thunder,window,pencil,bridge,castle,lantern,marble,ocean,"
        "rocket,tiger,violin,walnut,zebra".split(",")
    ),
    "drink": ("coffee", "tea", "milk", "water", "juice", "cocoa", "lemonade", "beer", "wine", "cider"),
    "instrument": ("piano", "guitar", "violin", "flute", "drums", "cello", "trumpet", "harp", "clarinet", "banjo"),
    "company": ("Siemens", "Toyota", "Nokia", "Philips", "Boeing", "Canon", "Lego", "Ikea", "Volvo", "Bosch", "Intel"),
}

ATTRIBUTES: tuple[Attribute, ...] = (
    Attribute(
        "name",
        ("My name is {}.", "Hi, I'm {}.", "I am called {}.", "Hello, {} is my name.", "People call me {}.",
         "Call me {}.", "You can call me {}.", "Hey there, my name's {}."),
        ("What is my name?", "Who am I?", "Tell me my name.", "What am I called?",
         "Do you remember my name?", "What's my name?"),
        "Your name is {}.", "person",
    ),
    Attribute(
        "city",
        ("I live in {}.", "I just moved to {}.", "My home is in {}.", "I'm living in {} now.", "I have a flat in {}.",
         "These days I live in {}.", "My house is in {}.", "I moved to {} last year."),
        ("Where do I live?", "Which city do I live in?", "Tell me where I live.", "In which place do I live?",
         "Do you remember where I live?", "What city do I live in?"),
        "You live in {}.", "city",
    ),
    Attribute(
        "job",
        ("I work as a {}.", "My job is {}.", "I am a {} by profession.", "I earn my living as a {}.",
         "By trade I'm a {}.", "My profession is {}.", "I'm working as a {}.", "For a living, I work as a {}."),
        ("What is my job?", "What do I work as?", "Tell me my profession.", "What is my profession?",
         "What do I do for a living?", "Do you remember my job?"),
        "You work as a {}.", "job",
    ),
    Attribute(
        "dog",
        ("My dog is called {}.", "I have a dog named {}.", "Our dog's name is {}.", "I named my dog {}.",
         "I walk my dog {} every day.", "We call our dog {}.", "My dog's name is {}.", "I own a dog called {}."),
        ("What is my dog's name?", "What is my dog called?", "Tell me the name of my dog.", "How did I name my dog?",
         "What's the name of my dog?", "Do you remember my dog's name?"),
        "Your dog's name is {}.", "pet",
    ),
    Attribute(
        "food",
        ("My favorite food is {}.", "I really love eating {}.", "The food I like best is {}.",
         "I could eat {} every day.", "Nothing tastes better to me than {}.", "I like {} more than any other food.",
         "My favourite dish is {}.", "The dish I love most is {}."),
        ("What is my favorite food?", "What do I like to eat most?", "Which food do I love?",
         "Tell me my favorite food.", "What food do I like best?", "What's my favorite food?"),
        "Your favorite food is {}.", "food",
    ),
    Attribute(
        "color",
        ("My favorite color is {}.", "I love the color {}.", "The color I like best is {}.",
         "I prefer {} over all colors.", "The most beautiful color to me is {}.", "I paint everything in {}.",
         "My favourite colour is {}.", "I like the color {} the most."),
        ("What is my favorite color?", "Which color do I like best?", "Tell me my favorite color.",
         "Which color do I love?", "What color do I like most?", "What's my favorite color?"),
        "Your favorite color is {}.", "color",
    ),
    Attribute(
        "hobby",
        ("My hobby is {}.", "In my free time I enjoy {}.", "I spend my weekends on {}.", "I love {} as a hobby.",
         "My favorite pastime is {}.", "I do {} for fun.", "The hobby I enjoy is {}.", "My main hobby is {}."),
        ("What is my hobby?", "What do I enjoy in my free time?", "Tell me my hobby.", "What is my favorite pastime?",
         "Which hobby do I have?", "What's my hobby?"),
        "Your hobby is {}.", "hobby",
    ),
    Attribute(
        "secret",
        ("My secret word is {}.", "The secret word is {}.", "Remember the secret word {}.", "Keep my secret word: {}.",
         "Please note the secret word {}.", "I chose {} as my secret word.", "My secret word will be {}.",
         "Let's make {} my secret word."),
        ("What is my secret word?", "Which secret word did I tell you?", "Tell me the secret word.",
         "What secret word did I choose?", "What's my secret word?", "Do you remember my secret word?"),
        "Your secret word is {}.", "word",
    ),
    Attribute(
        "team",
        ("My team is called {}.", "I play for the team {}.", "The name of my team is {}.", "Our team's name is {}.",
         "I joined a team named {}.", "We named our team {}.", "My team's name is {}.", "I'm on a team called {}."),
        ("What is my team called?", "What is the name of my team?", "Tell me my team's name.",
         "Which team do I play for?", "What's my team's name?", "Do you remember the name of my team?"),
        "Your team is called {}.", "word",
    ),
    Attribute(
        "sister",
        ("My sister is called {}.", "My sister's name is {}.", "I have a sister named {}.", "{} is my sister.",
         "My sister {} is visiting me.", "I grew up with my sister {}.", "The name of my sister is {}.",
         "I have a sister called {}."),
        ("What is my sister's name?", "What is my sister called?", "Tell me the name of my sister.",
         "Who is my sister?", "What's my sister's name?", "Do you remember my sister's name?"),
        "Your sister's name is {}.", "person",
    ),
    Attribute(
        "boss",
        ("My boss is called {}.", "My boss's name is {}.", "I work for a boss named {}.", "{} is my boss.",
         "My new boss is {}.", "I report to my boss {}.", "The name of my boss is {}.", "I have a boss called {}."),
        ("What is my boss's name?", "What is my boss called?", "Tell me the name of my boss.", "Who is my boss?",
         "What's my boss's name?", "Do you remember my boss's name?"),
        "Your boss's name is {}.", "person",
    ),
    Attribute(
        "drink",
        ("My favorite drink is {}.", "I always drink {}.", "The drink I like best is {}.", "I love drinking {}.",
         "Every morning I drink {}.", "I like {} more than other drinks.", "My favourite drink is {}.",
         "I enjoy drinking {} the most."),
        ("What is my favorite drink?", "What do I like to drink?", "Tell me my favorite drink.",
         "Which drink do I love?", "What drink do I like best?", "What's my favorite drink?"),
        "Your favorite drink is {}.", "drink",
    ),
    Attribute(
        "instrument",
        ("I play the {}.", "My instrument is the {}.", "I am learning to play the {}.",
         "I practice the {} every evening.", "The instrument I play is the {}.", "I bought myself a {} to play music.",
         "I've been playing the {} for years.", "Musically, I play the {}."),
        ("Which instrument do I play?", "What is my instrument?", "Tell me which instrument I play.",
         "What instrument am I learning?", "What instrument do I play?", "Do you remember my instrument?"),
        "You play the {}.", "instrument",
    ),
    Attribute(
        "company",
        ("I work for {}.", "My employer is {}.", "The company I work for is {}.", "I have a job at {}.",
         "I started working at {}.", "My company is called {}.", "I'm employed at {}.", "My employer is called {}."),
        ("Which company do I work for?", "Who is my employer?", "Tell me which company I work for.",
         "At which company do I work?", "Where do I work?", "What company do I work for?"),
        "You work for {}.", "company",
    ),
)

ACKNOWLEDGEMENTS = (
    "Got it.", "Thanks for telling me.", "That's nice to know.", "Okay, noted.", "Great!", "Nice to hear that.",
    "I see. How can I help you today?", "That sounds wonderful!", "Thank you for sharing that with me.",
)

SMALL_TALK = (
    "How are you today?", "The weather is lovely this morning.", "What is the capital of France?", "Tell me a joke.",
    "I slept badly last night.", "Can you recommend a good movie?", "It rained all day yesterday.", "Thanks a lot!",
    "What is two plus two?", "I am a bit tired.", "Do you like music?", "Let's talk about something else.",
    "Good morning!", "How does a bicycle work?", "What should I cook tonight?", "My train was late again.",
    "I read the news today.", "Why is the sky blue?", "Write a short sentence about autumn.", "That is interesting.",
    "What can you do?", "Give me a tip for staying healthy.", "I went to the market this morning.",
    "How do plants grow?", "Explain gravity.", "The bus was very crowded.", "Who wrote Romeo and Juliet?",
    "Name three fruits.", "I watched a film last night.", "What is a computer?", "How long is a marathon?",
    "Can you help me with my homework?", "My neighbour is very loud.",
)  # fmt: skip

_ONSETS = "b br c ch d dr f fl g gr h j k kl l m n p pr qu r s sh sk st t th tr v w x z".split()
_VOWELS = "a e i o u ai ee oa ou y".split()
_CODAS = "n r l s x k m nd rt lm th ck v sk".split()


def made_up_word(rng: random.Random) -> str:
    """A pronounceable word nobody uses, of two or three syllables."""
    syllables = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((2, 2, 3)))]
    return "".join(syllables) + rng.choice(_CODAS)


class Values:
    """Where values come from: closed lists, a vocabulary of words split into train and test, and made-up names."""

    def __init__(self, words: Sequence[str], *, seed: int = 1) -> None:
        shuffled = sorted(set(words))
        random.Random(seed).shuffle(shuffled)
        self.test_words = shuffled[:HELD_OUT_WORDS]
        self.train_words = shuffled[HELD_OUT_WORDS:]
        self._test_words = frozenset(self.test_words)

    def draw(self, attribute: Attribute, rng: random.Random, *, split: str, open_share: float) -> str:
        """A value: from the attribute's closed list, or with probability `open_share` any word or a made-up one."""
        if rng.random() >= open_share:
            return rng.choice(VALUES[attribute.values])
        if split == "train" and rng.random() < 0.2:
            word = made_up_word(rng)
            while word in self._test_words:
                word = made_up_word(rng)
        else:
            word = rng.choice(self.test_words if split == "test" else self.train_words)
        proper = VALUES[attribute.values][0][0].isupper()
        return word.capitalize() if proper and rng.random() < 0.8 else word

    def facts(self, count: int, rng: random.Random, *, split: str, open_share: float) -> list[Fact]:
        """`count` facts about different attributes, with different values."""
        facts: list[Fact] = []
        for attribute in rng.sample(ATTRIBUTES, count):
            value = self.draw(attribute, rng, split=split, open_share=open_share)
            while any(value == f.value for f in facts):
                value = self.draw(attribute, rng, split=split, open_share=open_share)
            facts.append(Fact(attribute, value))
        return facts


def vocabulary_words(vocabulary: Sequence[str]) -> list[str]:
    """Whole lower-case English-looking words of a byte-level BPE vocabulary."""
    marked = (t[1:] for t in vocabulary if t.startswith("Ġ"))
    return sorted({w.lower() for w in marked if w.isascii() and w.isalpha() and len(w) > 4})


def training_vocabulary(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The words that open values are drawn from, those of the closed lists left out."""
    closed = {v.lower() for values in VALUES.values() for v in values}
    return [w for w in vocabulary_words(list(tokenizer.get_vocab())) if w not in closed]
