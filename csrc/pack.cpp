// Best-fit-decreasing bin packing: puts document pieces into rows of a fixed capacity so that little of a row stays
// empty.
//
// Pieces are placed from the longest to the shortest, equal lengths in input order. Each goes into the row with the
// least space left that still holds it; among rows with equal space, into the one placed into last; into a new row when
// none has room. best_fit_decreasing_reference in logtrain/data/pack.py follows the same rules: the outputs are equal.
//
// Why it is fast: there are only `capacity` different values of "space left", so the rows need no search tree. A stack
// of rows for each value, plus a bitmap of which stacks hold anything, answers every question in a few instructions.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

namespace {

constexpr int32_t kNone = -1;

// A set of integers in [0, size). Level 0 has one bit an integer; a bit of the level above says that a 64-bit word
// below is not zero. Two levels cover 4,096 integers, three 262,144: no operation touches more than a few words.
class BitmapTree {
  public:
    explicit BitmapTree(size_t size) {
        do {
            size = (size + 63) / 64;
            levels_.emplace_back(size, 0);
        } while (size > 1);
    }

    void insert(size_t i) {
        for (auto& level : levels_) {
            level[i / 64] |= uint64_t{1} << (i % 64);
            i /= 64;
        }
    }

    void erase(size_t i) {
        for (auto& level : levels_) {
            level[i / 64] &= ~(uint64_t{1} << (i % 64));
            if (level[i / 64] != 0) return;  // other members keep the bits above
            i /= 64;
        }
    }

    // The smallest member >= i, or kNone.
    int32_t at_least(size_t i) const {
        for (size_t depth = 0; depth < levels_.size(); ++depth) {
            if (i / 64 >= levels_[depth].size()) return kNone;
            if (const uint64_t found = levels_[depth][i / 64] >> (i % 64)) {
                i += __builtin_ctzll(found);
                while (depth-- > 0) i = i * 64 + __builtin_ctzll(levels_[depth][i]);
                return static_cast<int32_t>(i);
            }
            i = i / 64 + 1;  // nothing in this word: the level above knows the next one that is not empty
        }
        return kNone;
    }

  private:
    std::vector<std::vector<uint64_t>> levels_;
};

// Rows with room, found by how much they have. The stacks are linked lists through next_, one link a row.
class OpenRows {
  public:
    explicit OpenRows(int32_t capacity) : top_(size_t(capacity) + 1, kNone), occupied_(size_t(capacity) + 1) {}

    int32_t least_space_for(int32_t length) const { return occupied_.at_least(size_t(length)); }

    int32_t pop(int32_t space) {
        const int32_t row = top_[space];
        top_[space] = next_[row];
        if (top_[space] == kNone) occupied_.erase(size_t(space));
        return row;
    }

    void push(int32_t row, int32_t space) {
        if (top_[space] == kNone) occupied_.insert(size_t(space));
        next_[row] = top_[space];
        top_[space] = row;
    }

    int32_t open() {
        next_.push_back(kNone);
        return static_cast<int32_t>(next_.size()) - 1;
    }

    int32_t count() const { return static_cast<int32_t>(next_.size()); }

  private:
    std::vector<int32_t> top_;   // by space left: the row placed into last
    std::vector<int32_t> next_;  // by row: the row below it in its stack
    BitmapTree occupied_;        // the spaces whose stack is not empty
};

// Writes the row of every piece and returns the number of rows. Every length is in [1, capacity].
int32_t best_fit_decreasing(const int32_t* lengths, int32_t num_pieces, int32_t capacity, int32_t* row_of_piece) {
    // Counting sort, longest first and stable. end[length] starts as the place of the first piece of that length in
    // `order` and is the place behind the last one when the second loop is done.
    std::vector<int32_t> end(size_t(capacity) + 2, 0);
    for (int32_t piece = 0; piece < num_pieces; ++piece) ++end[lengths[piece]];
    for (int32_t length = capacity, place = 0; length > 0; --length) {
        const int32_t count = end[length];
        end[length] = place;
        place += count;
    }
    std::vector<int32_t> order(num_pieces);
    for (int32_t piece = 0; piece < num_pieces; ++piece) order[end[lengths[piece]]++] = piece;

    OpenRows rows(capacity);
    for (int32_t length = capacity, place = 0; length > 0; --length) {
        for (; place < end[length]; ++place) {
            int32_t space = rows.least_space_for(length);
            int32_t row;
            if (space == kNone) {
                space = capacity;
                row = rows.open();
            } else {
                row = rows.pop(space);
            }
            row_of_piece[order[place]] = row;
            if (space > length) rows.push(row, space - length);  // a full row takes nothing more: every length is >= 1
        }
    }
    return rows.count();
}

// A one-dimensional contiguous int32 array of the caller, held for as long as this object lives.
class Int32Buffer {
  public:
    Int32Buffer() = default;
    Int32Buffer(const Int32Buffer&) = delete;
    Int32Buffer& operator=(const Int32Buffer&) = delete;
    ~Int32Buffer() {
        if (view_.obj) PyBuffer_Release(&view_);
    }

    // False, with a Python error set, when `object` is no such array.
    bool acquire(PyObject* object, const char* name, bool writable) {
        const int flags = PyBUF_ND | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
        if (PyObject_GetBuffer(object, &view_, flags) != 0) return false;
        const char* format = view_.format ? view_.format : "B";
        const bool is_int32 = view_.itemsize == sizeof(int32_t) && (!strcmp(format, "i") || !strcmp(format, "l"));
        if (view_.ndim == 1 && is_int32) return true;
        PyErr_Format(PyExc_ValueError, "%s must be a one-dimensional int32 array, not %d-dimensional of format '%s'",
                     name, view_.ndim, format);
        return false;
    }

    int32_t* data() const { return static_cast<int32_t*>(view_.buf); }
    Py_ssize_t size() const { return view_.len / Py_ssize_t(sizeof(int32_t)); }

  private:
    Py_buffer view_{};
};

PyObject* py_best_fit_decreasing(PyObject*, PyObject* args) {
    PyObject *lengths_object, *rows_object;
    int capacity;
    if (!PyArg_ParseTuple(args, "OiO:best_fit_decreasing", &lengths_object, &capacity, &rows_object)) return nullptr;
    Int32Buffer lengths, rows;
    if (!lengths.acquire(lengths_object, "lengths", false)) return nullptr;
    if (!rows.acquire(rows_object, "row_of_piece", true)) return nullptr;
    if (capacity < 1) return PyErr_Format(PyExc_ValueError, "capacity is %d, below 1", capacity);
    if (lengths.size() > INT32_MAX) return PyErr_Format(PyExc_ValueError, "%zd pieces are too many", lengths.size());
    if (rows.size() != lengths.size())
        return PyErr_Format(PyExc_ValueError, "row_of_piece holds %zd items, lengths %zd", rows.size(), lengths.size());

    const int32_t num_pieces = static_cast<int32_t>(lengths.size());
    int32_t invalid = 0, num_rows = 0;
    bool out_of_memory = false;
    Py_BEGIN_ALLOW_THREADS;
    while (invalid < num_pieces && lengths.data()[invalid] >= 1 && lengths.data()[invalid] <= capacity) ++invalid;
    if (invalid == num_pieces) {
        try {
            num_rows = best_fit_decreasing(lengths.data(), num_pieces, capacity, rows.data());
        } catch (const std::bad_alloc&) {
            out_of_memory = true;
        }
    }
    Py_END_ALLOW_THREADS;

    if (invalid < num_pieces)
        return PyErr_Format(PyExc_ValueError, "piece %d has length %d, outside 1..%d", invalid, lengths.data()[invalid],
                            capacity);
    if (out_of_memory) return PyErr_NoMemory();
    return PyLong_FromLong(num_rows);
}

constexpr char kDoc[] =
    "best_fit_decreasing(lengths, capacity, row_of_piece) -> num_rows\n\n"
    "Writes the row of each piece into row_of_piece. Both arrays are one-dimensional int32 buffers of one size, which\n"
    "the caller leaves alone meanwhile: other Python threads run. ValueError for a length outside 1..capacity.";

PyMethodDef methods[] = {
    {"best_fit_decreasing", py_best_fit_decreasing, METH_VARARGS, kDoc},
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
    "logtrain._pack",
    "Best-fit-decreasing packing of document pieces into rows.",
    0,  // no state
    methods,
    slots,
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__pack() { return PyModuleDef_Init(&module); }
