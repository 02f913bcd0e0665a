// Packing by looking ahead: puts document pieces into rows of a fixed capacity so that a row is a fair sample of the
// pieces, and yet little of it stays empty.
//
// The pieces come in a random order. A row takes the longest of the next ones, then the next ones in their order as long
// as they fit, and at the end, again and again, the longest of the next ones that still fits. "The next ones" are the
// first ones that no row has, half of them all but at least 64 and at most 1,024; of equally long ones the first is taken.
// look_ahead_fit_reference in logtrain/data/pack.py follows the same rules: the outputs are equal.
//
// Why it is fast: there are only `capacity` different lengths, so "the longest that fits" needs no search tree. A queue
// of pieces for each length, plus a bitmap of which queues hold anything, answers it in a few instructions.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

namespace {

constexpr int32_t kNone = -1;
// How many pieces are looked at, within limits: half of those that are left, so that the last rows are like the others.
constexpr int32_t kLeast = 64, kMost = 1024;

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

    // The greatest member <= i, or kNone.
    int32_t at_most(size_t i) const {
        for (size_t depth = 0; depth < levels_.size(); ++depth) {
            if (const uint64_t found = levels_[depth][i / 64] << (63 - i % 64)) {
                i -= __builtin_clzll(found);
                while (depth-- > 0) i = i * 64 + 63 - __builtin_clzll(levels_[depth][i]);
                return static_cast<int32_t>(i);
            }
            if (i < 64) return kNone;
            i = i / 64 - 1;  // nothing in this word: the level above knows the one before that is not empty
        }
        return kNone;
    }

  private:
    std::vector<std::vector<uint64_t>> levels_;
};

// The next pieces of the order that no row has, found by their length. Each length's pieces are a queue, linked through
// next_: the first of the window is always the first of its queue.
class Window {
  public:
    Window(const int32_t* lengths, int32_t num_pieces, int32_t capacity)
        : lengths_(lengths), num_left_(num_pieces), num_pieces_(num_pieces), next_(num_pieces),
          first_(size_t(capacity) + 1, kNone), last_(size_t(capacity) + 1, kNone), occupied_(size_t(capacity) + 1) {
        refill();
    }

    int32_t num_left() const { return num_left_; }

    // The length of the longest piece that has at most `space` tokens, or kNone.
    int32_t longest(int32_t space) const { return occupied_.at_most(size_t(space)); }

    // Takes the first piece of a length that is there.
    int32_t take(int32_t length) {
        const int32_t piece = first_[length];
        first_[length] = next_[piece];
        if (first_[length] == kNone) occupied_.erase(size_t(length));
        --size_;
        --num_left_;
        refill();
        return piece;
    }

  private:
    void refill() {
        const int32_t size = std::min(kMost, std::max(kLeast, num_left_ / 2));
        for (; end_ < num_pieces_ && size_ < size; ++end_, ++size_) {
            const int32_t length = lengths_[end_];
            next_[end_] = kNone;
            if (first_[length] == kNone) {
                first_[length] = end_;
                occupied_.insert(size_t(length));
            } else {
                next_[last_[length]] = end_;
            }
            last_[length] = end_;
        }
    }

    const int32_t* lengths_;
    int32_t num_left_, num_pieces_, end_ = 0, size_ = 0;  // the window's pieces are all before end_
    std::vector<int32_t> next_;                           // by piece: the one behind it in its queue
    std::vector<int32_t> first_, last_;                   // by length: the ends of the queue
    BitmapTree occupied_;                                 // the lengths whose queue is not empty
};

// Writes the row of every piece and returns the number of rows. Every length is in [1, capacity].
int32_t look_ahead_fit(const int32_t* lengths, int32_t num_pieces, int32_t capacity, int32_t* row_of_piece) {
    std::fill(row_of_piece, row_of_piece + num_pieces, kNone);
    Window window(lengths, num_pieces, capacity);
    int32_t num_rows = 0, front = 0;  // of the order: all before it have rows
    for (; window.num_left() > 0; ++num_rows) {
        int32_t space = capacity;
        int32_t length = window.longest(space);
        while (length != kNone) {
            row_of_piece[window.take(length)] = num_rows;
            space -= length;
            while (front < num_pieces && row_of_piece[front] != kNone) ++front;
            if (front == num_pieces || lengths[front] > space) break;
            length = lengths[front];
        }
        while (space > 0 && (length = window.longest(space)) != kNone) {
            row_of_piece[window.take(length)] = num_rows;
            space -= length;
        }
    }
    return num_rows;
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

PyObject* py_look_ahead_fit(PyObject*, PyObject* args) {
    PyObject *lengths_object, *rows_object;
    int capacity;
    if (!PyArg_ParseTuple(args, "OiO:look_ahead_fit", &lengths_object, &capacity, &rows_object)) return nullptr;
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
            num_rows = look_ahead_fit(lengths.data(), num_pieces, capacity, rows.data());
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
    "look_ahead_fit(lengths, capacity, row_of_piece) -> num_rows\n\n"
    "Writes the row of each piece into row_of_piece. Both arrays are one-dimensional int32 buffers of one size, which\n"
    "the caller leaves alone meanwhile: other Python threads run. ValueError for a length outside 1..capacity.";

PyMethodDef methods[] = {
    {"look_ahead_fit", py_look_ahead_fit, METH_VARARGS, kDoc},
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
    "Packing of document pieces into rows.",
    0,  // no state
    methods,
    slots,
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__pack() { return PyModuleDef_Init(&module); }
