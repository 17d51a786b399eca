"""URLs, sizes and sha256 of the original files of the registered sets of labeled texts."""

from zoo.data.fetch import FetchFile

_GITHUB = "https://raw.githubusercontent.com"
_SST2 = (
    f"{_GITHUB}/eyalbd2/Reproducing-AutoPrompt/6288fb5bec9c572f2492875ae0111df5b6daed11/glue_data/"
    "SST-2"
)
_RTE = f"{_GITHUB}/Ji-Yishan/MIEC-FYP/250635701007f7f2dc00b63ce2cbc3dfe104b4e0/RTE"
_SICK = f"{_GITHUB}/brmson/dataset-sts/e1d3375f5b3bc24f21aa4e46f96eb379e9fc1081/data/sts/sick2014"
_FARSTAIL = f"{_GITHUB}/dml-qom/FarsTail/5d6322c40368ea5fab50e406e083e537a7d97817/data"
_TREC = "http://cogcomp.org/Data/QA/QC"
_IMDB = "http://ai.stanford.edu/~amaas/data/sentiment"

# Name of the source -> (URL, name of the file, bytes, sha256).
_ROWS = {
    "sst2": [
        (f"{_SST2}/train_full.tsv", "train.tsv", 3806081,
         "48eac26399f8456935f81dd9e3a745c1430adb6c62e233ccfe22db4a0d15d1d1"),
        (f"{_SST2}/dev.tsv", "dev.tsv", 94931,
         "54a9c12c77e402fc14d6a66a506f24d999f596b0176eb777c972cccc2f9cc4b0"),
    ],
    "imdb": [
        (f"{_IMDB}/aclImdb_v1.tar.gz", "aclImdb_v1.tar.gz", 84125825,
         "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe"),
    ],
    "trec": [
        (f"{_TREC}/train_5500.label", "train_5500.label", 335858,
         "9e4c8bdcaffb96ed61041bd64b564183d52793a8e91d84fc3a8646885f466ec3"),
        (f"{_TREC}/TREC_10.label", "TREC_10.label", 23354,
         "033f22c028c2bbba9ca682f68ffe204dc1aa6e1cf35dd6207f2d4ca67f0d0e8e"),
    ],
    "rte": [
        (f"{_RTE}/train.parquet", "train.parquet", 583976,
         "a6252ab17015d718f6de1effe0980f7b158df63e3d16207cd8bd396b608e5147"),
        (f"{_RTE}/validation.parquet", "validation.parquet", 69020,
         "fb2aa2e04f551133ba663617a15ae133dc22b0f6a969bc0629b5ea6003ee9cf8"),
    ],
    "sick": [
        (f"{_SICK}/SICK_train.txt", "SICK_train.txt", 506243,
         "266cf8047149bd1d68138dd30439f3122bff30069740ac6705bb6197d9f1b48e"),
        (f"{_SICK}/SICK_trial.txt", "SICK_trial.txt", 57225,
         "5a88cfb62f8c6bd2a3cce0f2421ba2cb8c2be5ab4a800f6f01e2c64aafb7db56"),
        (f"{_SICK}/SICK_test_annotated.txt", "SICK_test_annotated.txt", 559979,
         "2b8aa806658d6fc23c6824c83776c2d4fee7556000817b5ec0f982861413b7d0"),
    ],
    "farstail": [
        (f"{_FARSTAIL}/Train-word.csv", "Train-word.csv", 3401128,
         "552cfe796652dc5ea02d53cd23e8b9d1d6d243bbf05fea2d9f959e9b851fbdd3"),
        (f"{_FARSTAIL}/Val-word.csv", "Val-word.csv", 706067,
         "a1f2a8bec45a597f5971c58911fabf3d9f7574b819bf637ab94f08f7be1c963e"),
        (f"{_FARSTAIL}/Test-word.csv", "Test-word.csv", 725415,
         "d0dd25408036e5dd8587a8e0d98585b46b4a7d0057fece0992fb8d490ad44f4f"),
    ],
}  # fmt: skip

# A random part of the reviews of imdb in the same layout: 3,000 + 3,000 training and 1,500 + 1,500
# test reviews. No site offers this file. `imdb` reads it if the whole archive is absent.
IMDB_SUBSET = FetchFile(
    "", "aclImdb-subset.tar.gz", 5156356,
    "1124023b65d4549f500c59a57a019f7f7d1636f660602a6337890a37809cc87f",
)  # fmt: skip


def original_files(name: str) -> tuple[FetchFile, ...]:
    """Returns the original files of a source, the training split first."""
    return tuple(FetchFile(*row) for row in _ROWS[name])
