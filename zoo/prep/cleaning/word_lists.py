"""A short list of insults and obscene words in English, German and Persian, for `toxicity`.

It is a start, not a judgement: a text about hate names the same words. Bring your own list or a
classifier (`prep.toxicity.file`, `prep.toxicity.scorer`) for anything that matters.
"""

_WORDS = """
    fuck fucks fucked fucker fucking motherfucker shit bullshit bitch bitches bastard asshole
    cunt cunts whore whores slut sluts faggot faggots retard retards wanker dickhead blowjob
    cumshot gangbang
    arschloch fotze hure hurensohn nutte schlampe wichser scheisse scheiße missgeburt spasti
    کیر کس‌کش کسکش جنده کونی حرامزاده حرومزاده لاشی دیوث بی‌ناموس گاییدن
"""
TOXIC = frozenset(_WORDS.split())
