"""Random questions, in the words of ``AttentionMasker.run``, for hypothesis."""

from hypothesis import strategies as st

SITES = ("MLP", "Resid", "Result_h")


@st.composite
def questions(draw, *, layers, heads, length, vocabulary):
    """Any question that is no contradiction, of a prompt of ``length`` tokens."""
    size = draw(st.integers(1, layers + 2))
    places = (
        ("layer", "layer"),
        ("all", "layer"),
        ("layer", "output"),
        (f"window:{size}", "output"),
        ("all", "output"),
    )
    cut, read = draw(st.sampled_from(places))
    words = {"cut": cut, "read": read, "intervention": draw(st.sampled_from(("mask", "value-zero", "value-mean")))}
    words["hidden_from"] = draw(st.sampled_from((None, "all", "others", "query")))
    words["query"] = draw(st.one_of(st.sampled_from(("last", "all")), subsets(length)))
    if (cut, read) != ("all", "output") and draw(st.booleans()):
        words["layers"] = draw(subsets(layers))
    if draw(st.booleans()):
        pairs = st.tuples(st.integers(0, layers - 1), st.integers(0, heads - 1))
        words["heads"] = draw(
            st.one_of(subsets(heads), st.lists(pairs, min_size=1, max_size=4, unique=True).map(sorted))
        )
    what = draw(st.sampled_from(("mask", "tokens", None)))
    if what is not None:
        groups = st.lists(subsets(length), min_size=1, max_size=3, unique_by=tuple)
        words[what] = draw(subsets(length) if what == "tokens" else groups)
    columns = ["relative_l2", *(["attention_mass"] if (cut, read) == ("layer", "layer") else [])]
    words["columns"] = draw(st.lists(st.sampled_from(columns), unique=True))
    if read == "layer":
        words["sites"] = draw(st.lists(st.sampled_from(SITES), unique=True))
    elif draw(st.booleans()):
        tokens = st.integers(0, vocabulary - 1)
        words["answer"] = draw(st.lists(tokens, min_size=1, max_size=3 if words["query"] == "last" else 1))
    return words


def subsets(count):
    """Some of the numbers below ``count``, in order."""
    return st.sets(st.integers(0, count - 1), min_size=1).map(sorted)
