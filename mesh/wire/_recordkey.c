/* The bulk of TLS 1.3 record protection: what mesh/wire/recordkey.py does, with OpenSSL's libcrypto.
 *
 * One object is the key of one direction. A call goes through all records of a buffer: that is the
 * point, since a call for every record costs as much as half of its encryption. Everything that
 * decides (alerts, KeyUpdate, limits) is in mesh/wire/records.py and the same for both forms;
 * tests/unit/wire/test_records.py holds both to one behaviour.
 *
 * Memory: no buffer outlives a call; every offset is checked against the buffers given. Nonces are
 * never used twice: the counter moves on before a record is touched, whatever becomes of it.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdint.h>
#include <string.h>

enum { HEAD = 5, TAG = 16, IV = 12, RECORD = 16384, MAX_LENGTH = RECORD + 256 };
enum { APPLICATION_DATA = 23 };
/* Results of open(), beside a content type. */
enum { NO_MORE = 0, BAD_MAC = -1, BAD_HEAD = -2, TOO_LONG = -3 };

typedef struct {
    PyObject_HEAD
    EVP_CIPHER_CTX *ctx;
    unsigned char iv[IV];
    int sealing;
    unsigned long long count; /* records under this key */
    Py_ssize_t used;          /* after open(): input consumed */
    Py_ssize_t written;       /* after open(): output produced */
    Py_ssize_t content;       /* after open() met another type: length of that content, behind it */
} Key;

static int next_nonce(Key *self) {
    unsigned char nonce[IV];
    uint64_t n = self->count++;
    memcpy(nonce, self->iv, IV);
    for (int i = 0; i < 8; i++)
        nonce[IV - 1 - i] ^= (unsigned char)(n >> (8 * i));
    return EVP_CipherInit_ex(self->ctx, NULL, NULL, NULL, nonce, self->sealing);
}

static int seal_one(Key *self, const unsigned char *in, int n, unsigned char kind,
                    unsigned char *out) {
    int len, length = n + 1 + TAG;
    unsigned char *at = out + HEAD;
    out[0] = APPLICATION_DATA;
    out[1] = out[2] = 3;
    out[3] = (unsigned char)(length >> 8);
    out[4] = (unsigned char)length;
    return next_nonce(self) == 1 && EVP_EncryptUpdate(self->ctx, NULL, &len, out, HEAD) == 1 &&
           (n == 0 || EVP_EncryptUpdate(self->ctx, at, &len, in, n) == 1) &&
           EVP_EncryptUpdate(self->ctx, at + n, &len, &kind, 1) == 1 &&
           EVP_EncryptFinal_ex(self->ctx, at + n + 1, &len) == 1 &&
           EVP_CIPHER_CTX_ctrl(self->ctx, EVP_CTRL_AEAD_GET_TAG, TAG, at + n + 1) == 1;
}

static int open_one(Key *self, unsigned char *raw, int length, unsigned char *out) {
    int len, n = length - TAG;
    unsigned char *body = raw + HEAD;
    return next_nonce(self) == 1 && EVP_DecryptUpdate(self->ctx, NULL, &len, raw, HEAD) == 1 &&
           EVP_DecryptUpdate(self->ctx, out, &len, body, n) == 1 &&
           EVP_CIPHER_CTX_ctrl(self->ctx, EVP_CTRL_AEAD_SET_TAG, TAG, body + n) == 1 &&
           EVP_DecryptFinal_ex(self->ctx, out + n, &len) == 1;
}

static PyObject *crypto_failed(void) {
    PyErr_SetString(PyExc_RuntimeError, "OpenSSL failed to encrypt a record");
    return NULL;
}

PyDoc_STRVAR(seal_doc,
             "seal(buf, view, n, out, at) -> int\n\nEncrypt view[:n] as data records into out[at:]; "
             "returns where they end.");

static PyObject *Key_seal(Key *self, PyObject *const *args, Py_ssize_t nargs) {
    Py_buffer in, out;
    PyObject *result = NULL;
    if (nargs != 5) {
        PyErr_SetString(PyExc_TypeError, "seal(buf, view, n, out, at)");
        return NULL;
    }
    Py_ssize_t n = PyLong_AsSsize_t(args[2]), at = PyLong_AsSsize_t(args[4]);
    if (PyErr_Occurred() || PyObject_GetBuffer(args[1], &in, PyBUF_SIMPLE))
        return NULL;
    if (PyObject_GetBuffer(args[3], &out, PyBUF_WRITABLE)) {
        PyBuffer_Release(&in);
        return NULL;
    }
    Py_ssize_t records = n > 0 ? (n + RECORD - 1) / RECORD : 0;
    if (!self->sealing || n < 0 || n > in.len || at < 0 || at > out.len ||
        n + records * (HEAD + 1 + TAG) > out.len - at) {
        PyErr_SetString(PyExc_ValueError, "seal: offsets outside of the buffers");
        goto done;
    }
    for (Py_ssize_t i = 0; i < n;) {
        int size = n - i < RECORD ? (int)(n - i) : RECORD;
        if (!seal_one(self, (unsigned char *)in.buf + i, size, APPLICATION_DATA,
                      (unsigned char *)out.buf + at)) {
            crypto_failed();
            goto done;
        }
        i += size;
        at += HEAD + size + 1 + TAG;
    }
    result = PyLong_FromSsize_t(at);
done:
    PyBuffer_Release(&out);
    PyBuffer_Release(&in);
    return result;
}

PyDoc_STRVAR(seal_small_doc,
             "seal_small(kind, content) -> bytes\n\nOne record of any content type.");

static PyObject *Key_seal_small(Key *self, PyObject *args) {
    unsigned char kind;
    Py_buffer in;
    if (!PyArg_ParseTuple(args, "by*:seal_small", &kind, &in))
        return NULL;
    PyObject *result = NULL;
    if (!self->sealing || in.len > RECORD)
        PyErr_SetString(PyExc_ValueError, "seal_small: more than a record holds");
    else if ((result = PyBytes_FromStringAndSize(NULL, HEAD + in.len + 1 + TAG)) &&
             !seal_one(self, in.buf, (int)in.len, kind, (unsigned char *)PyBytes_AS_STRING(result))) {
        Py_CLEAR(result);
        crypto_failed();
    }
    PyBuffer_Release(&in);
    return result;
}

/* Go through records until one is incomplete, wrong, or not data. */
static int open_all(Key *self, unsigned char *raw, Py_ssize_t end, unsigned char *out) {
    Py_ssize_t i = self->used, at = self->written;
    int result = NO_MORE;
    while (end - i >= HEAD) {
        int length = raw[i + 3] << 8 | raw[i + 4];
        if (raw[i] != APPLICATION_DATA || length > MAX_LENGTH || length < TAG + 1) {
            result = BAD_HEAD;
            break;
        }
        if (end - i - HEAD < length)
            break;
        if (!open_one(self, raw + i, length, out + at)) {
            OPENSSL_cleanse(out + at, length - TAG);
            result = BAD_MAC;
            break;
        }
        i += HEAD + length;
        int n = length - TAG;
        unsigned char kind = 0;
        while (!kind && n > 0) /* behind the content type there may be padding */
            kind = out[at + --n];
        if (n > RECORD) {
            result = TOO_LONG;
            break;
        }
        if (kind != APPLICATION_DATA || n == 0) {
            self->content = n;
            result = kind ? kind : 256;
            break;
        }
        at += n;
    }
    self->used = i;
    self->written = at;
    return result;
}

PyDoc_STRVAR(open_doc,
             "open(raw, start, end, out, at) -> int\n\nDecrypt the complete data records of "
             "raw[start:end] into out[at:]; see mesh.wire.recordkey.");

static PyObject *Key_open(Key *self, PyObject *const *args, Py_ssize_t nargs) {
    Py_buffer in, out;
    if (nargs != 5) {
        PyErr_SetString(PyExc_TypeError, "open(raw, start, end, out, at)");
        return NULL;
    }
    Py_ssize_t start = PyLong_AsSsize_t(args[1]), end = PyLong_AsSsize_t(args[2]),
               at = PyLong_AsSsize_t(args[4]);
    if (PyErr_Occurred() || PyObject_GetBuffer(args[0], &in, PyBUF_SIMPLE))
        return NULL;
    if (PyObject_GetBuffer(args[3], &out, PyBUF_WRITABLE)) {
        PyBuffer_Release(&in);
        return NULL;
    }
    PyObject *result = NULL;
    /* Plaintext is shorter than its records: room for as much is room enough. */
    if (self->sealing || start < 0 || start > end || end > in.len || at < 0 || at > out.len ||
        end - start > out.len - at) {
        PyErr_SetString(PyExc_ValueError, "open: offsets outside of the buffers");
    } else {
        self->used = start;
        self->written = at;
        self->content = 0;
        result = PyLong_FromLong(open_all(self, in.buf, end, out.buf));
    }
    PyBuffer_Release(&out);
    PyBuffer_Release(&in);
    return result;
}

static int Key_init(Key *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"cipher", "key", "iv", "sealing", NULL};
    const char *cipher, *key, *iv;
    Py_ssize_t key_len, iv_len;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sy#y#p:RecordKey", names, &cipher, &key,
                                     &key_len, &iv, &iv_len, &self->sealing))
        return -1;
    const EVP_CIPHER *kind = NULL;
    if (!strcmp(cipher, "TLS_AES_128_GCM_SHA256"))
        kind = EVP_aes_128_gcm();
    else if (!strcmp(cipher, "TLS_AES_256_GCM_SHA384"))
        kind = EVP_aes_256_gcm();
    else if (!strcmp(cipher, "TLS_CHACHA20_POLY1305_SHA256"))
        kind = EVP_chacha20_poly1305();
    if (!kind || key_len != EVP_CIPHER_get_key_length(kind) || iv_len != IV) {
        PyErr_SetString(PyExc_ValueError, "RecordKey: not a cipher of TLS 1.3 with key and iv");
        return -1;
    }
    memcpy(self->iv, iv, IV);
    EVP_CIPHER_CTX_free(self->ctx);
    self->ctx = EVP_CIPHER_CTX_new();
    self->count = 0;
    if (!self->ctx || EVP_CipherInit_ex(self->ctx, kind, NULL, (const unsigned char *)key,
                                        self->iv, self->sealing) != 1) {
        PyErr_SetString(PyExc_RuntimeError, "OpenSSL does not take a key");
        return -1;
    }
    return 0;
}

static PyObject *Key_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    Key *self = (Key *)type->tp_alloc(type, 0);
    if (self && Key_init(self, args, kwargs)) /* so that there is no object without a key */
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void Key_dealloc(Key *self) {
    EVP_CIPHER_CTX_free(self->ctx);
    OPENSSL_cleanse(self->iv, IV);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef key_methods[] = {
    {"seal", (PyCFunction)(void (*)(void))Key_seal, METH_FASTCALL, seal_doc},
    {"seal_small", (PyCFunction)Key_seal_small, METH_VARARGS, seal_small_doc},
    {"open", (PyCFunction)(void (*)(void))Key_open, METH_FASTCALL, open_doc},
    {NULL},
};

static PyMemberDef key_members[] = {
    {"count", T_ULONGLONG, offsetof(Key, count), READONLY, "records under this key"},
    {"used", T_PYSSIZET, offsetof(Key, used), READONLY, "after open: input consumed"},
    {"written", T_PYSSIZET, offsetof(Key, written), READONLY, "after open: output produced"},
    {"content", T_PYSSIZET, offsetof(Key, content), READONLY, "after open: bytes of what was met"},
    {NULL},
};

static PyTypeObject key_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mesh.wire._recordkey.RecordKey",
    .tp_doc = "RecordKey(cipher, key, iv, sealing): one direction of mesh.wire.records.",
    .tp_basicsize = sizeof(Key),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = Key_new,
    .tp_dealloc = (destructor)Key_dealloc,
    .tp_methods = key_methods,
    .tp_members = key_members,
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "mesh.wire._recordkey",
    .m_doc = "TLS 1.3 record protection with libcrypto.",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit__recordkey(void) {
    PyObject *m = PyModule_Create(&module);
    if (m && (PyType_Ready(&key_type) || PyModule_AddObjectRef(m, "RecordKey", (PyObject *)&key_type)))
        Py_CLEAR(m);
    return m;
}
