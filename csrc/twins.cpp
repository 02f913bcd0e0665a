// Masks the values of texts and signs their words: what logtrain/text/masked.py and logtrain/data/near_twins.py do, which
// say what is a value and what a signature. The results are equal.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <new>
#include <string>
#include <string_view>
#include <vector>

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are hashed as numbers of 8 bytes");

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx2", "default")))  // which one is found when it is loaded
#else
#define FOR_EACH_PROCESSOR
#endif

namespace {

constexpr char kEnd[] = " \x01 ";  // after a text: a word of its own
constexpr size_t kPadding = 8;     // bytes after that, for words are read 8 bytes at a time
constexpr size_t kLeastHex = 8, kMostWordBytes = 64, kMostDateBytes = 9;
constexpr uint8_t kDigit = 1, kLetter = 4;  // of KIND
constexpr size_t kSignature = 64;
using Signature = std::array<uint8_t, kSignature>;

uint64_t mixed(uint64_t hash) {
    hash ^= hash >> 32;
    for (int i = 0; i < 2; ++i) {
        hash *= 0xD6E8FEB86659FD93;
        hash ^= hash >> 32;
    }
    return hash;
}

struct Tables {
    std::array<uint8_t, 256> kind{};  // of each byte
    std::array<bool, 256> joins{};    // whether it may stand between two values that are one
    std::vector<uint64_t> dates;      // sorted hashes of the words that are values beside a value
    std::array<uint32_t, kSignature> factors{};

    Tables() {
        for (const char byte : std::string_view(" \t-+.:/,_%")) joins[uint8_t(byte)] = true;
        for (size_t i = 0; i < kSignature; ++i) factors[i] = uint32_t(mixed(i + 1)) | 1;
    }
};

struct Word {
    size_t start, stop;
    uint64_t hash;
    bool is_hex, is_near, is_value;  // is_near: to the word before it
};

// Bytes [start, stop) as a hash. The first kMostWordBytes and the length count.
uint64_t hash_of(const uint8_t* bytes, size_t start, size_t stop) {
    const auto eight = [&](size_t begin) {
        uint64_t value;
        std::memcpy(&value, bytes + begin, 8);
        const size_t left = stop - begin;
        return left >= 8 ? value : value & ((uint64_t(1) << 8 * left) - 1);
    };
    uint64_t hash = mixed(eight(start)) + (stop - start);
    const size_t last = std::min(stop, start + kMostWordBytes);
    for (size_t begin = start + 8; begin < last; begin += 8) hash = mixed(hash ^ eight(begin));
    return hash;
}

// The words of a text, whose bytes go on with kEnd and kPadding zeros; the last is that of kEnd.
void find_words(const std::vector<uint8_t>& bytes, const Tables& tables, std::vector<Word>& words) {
    words.clear();
    for (size_t at = 0;;) {
        while (at < bytes.size() && !tables.kind[bytes[at]]) ++at;
        if (at == bytes.size()) return;
        const size_t start = at;
        uint8_t kinds = 0;
        for (uint8_t kind; (kind = tables.kind[bytes[at]]); ++at) kinds |= kind;
        bool is_near = false;
        if (!words.empty()) {
            const size_t before = words.back().stop;
            is_near = start - before <= 2 && tables.joins[bytes[before]] && tables.joins[bytes[start - 1]];
        }
        const bool is_hex = !(kinds & kLetter);
        const bool is_value = kinds & kDigit || (is_hex && at - start >= kLeastHex);
        words.push_back({start, at, hash_of(bytes.data(), start, at), is_hex, is_near, is_value});
    }
}

// Groups of hexadecimal digits, and then dates, are values.
void find_more_values(const std::vector<uint8_t>& bytes, const Tables& tables, std::vector<Word>& words) {
    const auto goes_on = [&](size_t i) {
        const uint8_t after = bytes[words[i - 1].stop], before = bytes[words[i].start - 1];
        return words[i].is_near && words[i].is_hex && words[i - 1].is_hex && (after == ':' || after == '-') &&
               before == after;
    };
    for (size_t i = 2; i < words.size(); ++i)
        if (goes_on(i) && goes_on(i - 1)) words[i - 2].is_value = words[i - 1].is_value = words[i].is_value = true;

    std::vector<size_t> found;
    for (int round = 0; round < 2; ++round) {  // "Nov" is beside "9", and "Sun" beside "Nov 9"
        found.clear();
        for (size_t i = 0; i < words.size(); ++i) {
            const Word& word = words[i];
            if (word.is_value || word.stop - word.start > kMostDateBytes) continue;
            const bool is_beside = (word.is_near && words[i - 1].is_value) ||
                                   (i + 1 < words.size() && words[i + 1].is_near && words[i + 1].is_value);
            if (is_beside && std::binary_search(tables.dates.begin(), tables.dates.end(), word.hash)) found.push_back(i);
        }
        for (const size_t i : found) words[i].is_value = true;
    }
}

// Appends the text with "#" for each value to `masked`, and puts the hashes of the words of that into `hashes`.
void mask(const std::vector<uint8_t>& bytes, const Tables& tables, const std::vector<Word>& words, std::string& masked,
          std::vector<uint64_t>& hashes) {
    static const uint64_t value = mixed('#') + 1;
    hashes.clear();
    size_t kept = 0;  // the first byte that is not dealt with
    for (size_t i = 0; i < words.size(); ++i) {
        const Word& word = words[i];
        if (!word.is_value) {
            hashes.push_back(word.hash);
            continue;
        }
        const bool is_joined = i > 0 && word.is_near && words[i - 1].is_value;
        if (!is_joined) {
            size_t start = word.start;
            const bool is_after_sign = start > 0 && (bytes[start - 1] == '+' || bytes[start - 1] == '-');
            if (is_after_sign && (start == 1 || !tables.kind[bytes[start - 2]])) --start;
            masked.append(bytes.begin() + kept, bytes.begin() + start);
            masked.push_back('#');
            hashes.push_back(value);
        }
        kept = word.stop;
    }
    masked.append(bytes.begin() + kept, bytes.end() - (sizeof(kEnd) - 1 + kPadding));
}

FOR_EACH_PROCESSOR
void smallest_hashes(const uint32_t* sets, size_t num_sets, const uint32_t* factors, uint32_t* smallest) {
    std::fill(smallest, smallest + kSignature, UINT32_MAX);
    for (size_t i = 0; i < num_sets; ++i)
        for (size_t nth = 0; nth < kSignature; ++nth) {
            uint32_t hash = sets[i] * factors[nth];
            hash ^= hash >> 15;
            smallest[nth] = hash < smallest[nth] ? hash : smallest[nth];
        }
}

// Each word begins a set of three.
Signature sign(const std::vector<uint64_t>& hashes, const Tables& tables, std::vector<uint32_t>& sets) {
    sets.clear();
    const size_t num_words = hashes.size();
    for (size_t i = 0; i < num_words; ++i) {
        const uint64_t second = i + 1 < num_words ? hashes[i + 1] : 0, third = i + 2 < num_words ? hashes[i + 2] : 0;
        sets.push_back(uint32_t(mixed(mixed(mixed(hashes[i]) ^ second) ^ third)));
    }
    std::array<uint32_t, kSignature> smallest;
    smallest_hashes(sets.data(), sets.size(), tables.factors.data(), smallest.data());
    Signature signature;
    for (size_t nth = 0; nth < kSignature; ++nth) signature[nth] = uint8_t(smallest[nth] * 0x9E3779B1u >> 24);
    return signature;
}

struct Result {
    std::string masked;        // the texts end to end
    std::vector<size_t> ends;  // where each ends
    std::vector<Signature> signatures;
};

Result mask_and_sign(const std::vector<std::string_view>& texts, const Tables& tables) {
    Result result;
    std::vector<uint8_t> bytes;
    std::vector<Word> words;
    std::vector<uint64_t> hashes;
    std::vector<uint32_t> sets;
    for (const std::string_view text : texts) {
        bytes.assign(text.begin(), text.end());
        bytes.insert(bytes.end(), kEnd, kEnd + sizeof(kEnd) - 1);
        bytes.insert(bytes.end(), kPadding, 0);
        find_words(bytes, tables, words);
        find_more_values(bytes, tables, words);
        mask(bytes, tables, words, result.masked, hashes);
        result.ends.push_back(result.masked.size());
        result.signatures.push_back(sign(hashes, tables, sets));
    }
    return result;
}

PyObject* as_python(const Result& result) {
    PyObject* masked = PyList_New(Py_ssize_t(result.ends.size()));
    if (!masked) return nullptr;
    size_t start = 0;
    for (size_t i = 0; i < result.ends.size(); ++i) {
        const auto size = Py_ssize_t(result.ends[i] - start);
        PyObject* text = PyBytes_FromStringAndSize(result.masked.data() + start, size);
        if (!text) return Py_DECREF(masked), nullptr;
        PyList_SET_ITEM(masked, Py_ssize_t(i), text);
        start = result.ends[i];
    }
    const bool is_empty = result.signatures.empty();  // Python makes None of its data
    const auto* signatures = is_empty ? "" : reinterpret_cast<const char*>(result.signatures.data());
    return Py_BuildValue("Ny#", masked, signatures, Py_ssize_t(result.signatures.size() * sizeof(Signature)));
}

PyObject* py_mask_and_sign(PyObject*, PyObject* args) {
    PyObject* texts_object;
    const char *kind, *dates;
    Py_ssize_t kind_size, dates_size;
    if (!PyArg_ParseTuple(args, "O!y#y#:mask_and_sign", &PyTuple_Type, &texts_object, &kind, &kind_size, &dates,
                          &dates_size))
        return nullptr;
    if (kind_size != 256 || kind[1] == 0 || kind[0] || kind[uint8_t(' ')])
        return PyErr_Format(PyExc_ValueError, "kind must hold those of 256 bytes, and that of 0 and blanks is 0");
    try {
        Tables tables;
        std::memcpy(tables.kind.data(), kind, 256);
        tables.dates.resize(size_t(dates_size) / 8);
        std::memcpy(tables.dates.data(), dates, tables.dates.size() * 8);
        std::vector<std::string_view> texts(size_t(PyTuple_GET_SIZE(texts_object)));
        for (size_t i = 0; i < texts.size(); ++i) {
            PyObject* text = PyTuple_GET_ITEM(texts_object, Py_ssize_t(i));
            if (!PyBytes_Check(text)) return PyErr_Format(PyExc_TypeError, "text %zu is not bytes", i);
            texts[i] = {PyBytes_AS_STRING(text), size_t(PyBytes_GET_SIZE(text))};
        }
        Result result;
        bool is_done = true;
        Py_BEGIN_ALLOW_THREADS;
        try {
            result = mask_and_sign(texts, tables);
        } catch (const std::bad_alloc&) {
            is_done = false;
        }
        Py_END_ALLOW_THREADS;
        return is_done ? as_python(result) : PyErr_NoMemory();
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    }
}

constexpr char kDoc[] =
    "mask_and_sign(texts, kind, dates) -> (masked, signatures)\n\n"
    "texts: a tuple of bytes. kind: 256 bytes, KIND of text/masked.py. dates: its DATE_HASHES as bytes. masked: a list\n"
    "of bytes, the texts with # for each value. signatures: 64 bytes a text, end to end. Other Python threads run\n"
    "meanwhile.";

PyMethodDef methods[] = {
    {"mask_and_sign", py_mask_and_sign, METH_VARARGS, kDoc},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef_Slot slots[] = {
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},  // free-threaded Python need not switch its lock back on for this module
#endif
    {0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    "logtrain._twins",
    "Masking and signing of texts.",
    0,  // no state
    methods,
    slots,
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__twins() { return PyModuleDef_Init(&module); }
