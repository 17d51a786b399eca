"""Lists insults and obscene words in English, German and Persian, for the rule `toxicity`.

The list is short, and texts about hate speech use the same words. For production dataset
`prep.toxicity.file` to your own list or `prep.toxicity.scorer` to a classifier.
"""

_WORDS = """
    fuck fucks fucked fucker fucking motherfucker shit bullshit bitch bitches bastard asshole
    cunt cunts whore whores slut sluts faggot faggots retard retards wanker dickhead blowjob
    cumshot gangbang
    arschloch fotze hure hurensohn nutte schlampe wichser scheisse scheiße missgeburt spasti
    کیر کس‌کش کسکش جنده کونی حرامزاده حرومزاده لاشی دیوث بی‌ناموس گاییدن
"""
TOXIC = frozenset(_WORDS.split())
