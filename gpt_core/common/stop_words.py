"""English words that say little about the topic of a text."""

# Lucene's stop words, and question words, auxiliaries and pronouns: rare in prose, so that IDF would rate them high.
_LUCENE = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with"
)
_QUESTIONS = (
    "what which who whom when whose where why how do does did can could should would i my me you your we our"
)
STOP_WORDS = frozenset(f"{_LUCENE} {_QUESTIONS}".split())
# Words that say little about the topic of a text, for comparing an answer with its sources: the stop words and more.
_TOPICLESS = (
    "about above after again against all also am any because been before being below between both d did doing down "
    "during each either etc few from further had has have having he her here hers him his however its just ll m more "
    "most neither nor now off once only other out over own re s same she since so some t than them through those thus "
    "too under until up upon ve very were while within without "
    "answer answers passage passages question questions text"
)
FUNCTION_WORDS = STOP_WORDS | frozenset(_TOPICLESS.split())
