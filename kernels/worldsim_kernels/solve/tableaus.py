"""Butcher tableaus of explicit Runge-Kutta methods, as exact fractions.

The tests check every one against the order conditions of rooted trees (Butcher 1963), for the solution, the
embedded solution and the interpolant, and that no order is one higher than declared. ``tsit5`` and ``dopri8``
have irrational coefficients; theirs are decimals of twenty digits and fractions of eighteen, whose conditions
hold to 1e-15.

Only ``dopri8`` needs more stages between its steps, three, for order 7. They are ours: its own stages give
the state to order 6 at just two inner times, 0.311... and 1 - 0.311...; slopes there let it be had to order 6
everywhere, so at the middle too, and these three slopes to order 7 everywhere. Of the polynomials of degree 7
that do it and join with their slopes, the one with the smallest error of order 8, each tree by its symmetry,
in the mean square over the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

Number = Fraction


@dataclass(frozen=True)
class Tableau:
    """An explicit method with s stages.

    a      s rows, row i with i entries: the stage i is at y + h sum_j a[i][j] k_j
    b      weights of the solution
    error  weights of the error estimate, b - b_embedded; None for a method without one
    c      times of the stages
    dense  polynomials in theta without constant term, one to a stage, lowest power first and all of one
           length: y(t + theta h) = y + h sum_i p_i(theta) k_i; p_i(1) = b_i
    dense_order  of the interpolant: its error after one step is O(h^(dense_order + 1))
    reuse  whether the last stage is the first of the next step (a[-1] == b)
    more, more_c  stages for ``dense`` alone, which continue ``a`` and ``c``
    """

    order: int
    error_order: int | None
    a: tuple[tuple[Number, ...], ...]
    b: tuple[Number, ...]
    c: tuple[Number, ...]
    dense: tuple[tuple[Number, ...], ...]
    dense_order: int
    error: tuple[Number, ...] | None = None
    reuse: bool = False
    more: tuple[tuple[Number, ...], ...] = ()
    more_c: tuple[Number, ...] = ()


def _fractions(text: str) -> tuple[Fraction, ...]:
    return tuple(Fraction(each) for each in text.split())


def _rows(text: str) -> tuple[tuple[Fraction, ...], ...]:
    """One row to a line; a line of "0" for a stage that the interpolant leaves out."""
    rows = [_fractions(line) for line in text.strip().splitlines()]
    width = max(map(len, rows))
    return tuple(row if any(row) else (Fraction(0),) * width for row in rows)


def _stages(text: str) -> tuple[tuple[Fraction, ...], ...]:
    return ((), *(_fractions(line) for line in text.strip().splitlines()))


def _difference(left: Sequence[Fraction], right: Sequence[Fraction]) -> tuple[Fraction, ...]:
    return tuple(x - y for x, y in zip(left, right, strict=True))


def _hermite(b: Sequence[Fraction]) -> tuple[tuple[Fraction, ...], ...]:
    """The cubic with the states and slopes of both ends, for a method whose last stage is its end."""
    rows = [[Fraction(0), 3 * weight, -2 * weight] for weight in b]
    for row, part in ((rows[0], (1, -2, 1)), (rows[-1], (0, -1, 1))):
        for power, value in enumerate(part):
            row[power] += value
    return tuple(map(tuple, rows))


_EULER = Tableau(
    order=1,
    error_order=None,
    a=_stages(""),
    b=_fractions("1"),
    c=_fractions("0"),
    dense=_rows("1"),
    dense_order=1,
)

# Runge 1895.
_MIDPOINT = Tableau(
    order=2,
    error_order=None,
    a=_stages("1/2"),
    b=_fractions("0 1"),
    c=_fractions("0 1/2"),
    dense=_rows("1 -1\n0 1"),
    dense_order=2,
)

# Heun 1900; its error is the distance to Euler's step.
_HEUN = Tableau(
    order=2,
    error_order=1,
    a=_stages("1"),
    b=_fractions("1/2 1/2"),
    c=_fractions("0 1"),
    error=_fractions("-1/2 1/2"),
    dense=_rows("1 -1/2\n0 1/2"),
    dense_order=2,
)

# Fehlberg 1969, RK1(2), carried on with the solution of order 2.
_FEHLBERG2_B = _fractions("1/512 255/256 1/512")
_FEHLBERG2 = Tableau(
    order=2,
    error_order=1,
    a=_stages("1/2\n1/256 255/256"),
    b=_FEHLBERG2_B,
    c=_fractions("0 1/2 1"),
    error=_difference(_FEHLBERG2_B, _fractions("1/256 255/256 0")),
    dense=_rows("1 -511/512\n0 255/256\n0 1/512"),
    dense_order=2,
)

# Ralston 1962: the smallest bound on the error of two stages.
_RALSTON = Tableau(
    order=2,
    error_order=1,
    a=_stages("2/3"),
    b=_fractions("1/4 3/4"),
    c=_fractions("0 2/3"),
    error=_fractions("-3/4 3/4"),
    dense=_rows("1 -3/4\n0 3/4"),
    dense_order=2,
)

# Heun 1900, of order 3.
_HEUN3 = Tableau(
    order=3,
    error_order=None,
    a=_stages("1/3\n0 2/3"),
    b=_fractions("1/4 0 3/4"),
    c=_fractions("0 1/3 2/3"),
    dense=_rows("1 -3/4\n0 0\n0 3/4"),
    dense_order=2,
)

# Bogacki and Shampine 1989.
_BOSH3_B = _fractions("2/9 1/3 4/9 0")
_BOSH3 = Tableau(
    order=3,
    error_order=2,
    a=_stages("1/2\n0 3/4\n2/9 1/3 4/9"),
    b=_BOSH3_B,
    c=_fractions("0 1/2 3/4 1"),
    error=_difference(_BOSH3_B, _fractions("7/24 1/4 1/3 1/8")),
    dense=_hermite(_BOSH3_B),
    dense_order=3,
    reuse=True,
)

# Kutta 1901; the cubic between its steps (Zennaro 1986) is the one of order 3 that its stages allow.
_RK4 = Tableau(
    order=4,
    error_order=None,
    a=_stages("1/2\n0 1/2\n0 0 1"),
    b=_fractions("1/6 1/3 1/3 1/6"),
    c=_fractions("0 1/2 1/2 1"),
    dense=_rows("1 -3/2 2/3\n0 1 -2/3\n0 1 -2/3\n0 -1/2 2/3"),
    dense_order=3,
)

# Kutta 1901, the rule of three eighths, which torchdiffeq calls rk4; the cubic as above.
_THREE_EIGHTHS = Tableau(
    order=4,
    error_order=None,
    a=_stages("1/3\n-1/3 1\n1 -1 1"),
    b=_fractions("1/8 3/8 3/8 1/8"),
    c=_fractions("0 1/3 2/3 1"),
    dense=_rows("1 -15/8 1\n0 15/8 -3/2\n0 3/8 0\n0 -3/8 1/2"),
    dense_order=3,
)

# Dormand and Prince 1980; the interpolant is Shampine's, 1986.
_DOPRI5_B = _fractions("35/384 0 500/1113 125/192 -2187/6784 11/84 0")
_DOPRI5 = Tableau(
    order=5,
    error_order=4,
    a=_stages("""
1/5
3/40 9/40
44/45 -56/15 32/9
19372/6561 -25360/2187 64448/6561 -212/729
9017/3168 -355/33 46732/5247 49/176 -5103/18656
35/384 0 500/1113 125/192 -2187/6784 11/84
"""),
    b=_DOPRI5_B,
    c=_fractions("0 1/5 3/10 4/5 8/9 1 1"),
    error=_difference(_DOPRI5_B, _fractions("5179/57600 0 7571/16695 393/640 -92097/339200 187/2100 1/40")),
    dense=_rows("""
1 -8048581381/2820520608 8663915743/2820520608 -12715105075/11282082432
0
0 131558114200/32700410799 -68118460800/10900136933 87487479700/32700410799
0 -1754552775/470086768 14199869525/1410260304 -10690763975/1880347072
0 127303824393/49829197408 -318862633887/49829197408 701980252875/199316789632
0 -282668133/205662961 2019193451/616988883 -1453857185/822651844
0 40617522/29380423 -110615467/29380423 69997945/29380423
"""),
    dense_order=4,
    reuse=True,
)

# Tsitouras 2011, with the interpolant given there. The digits beyond the published sixteen solve the order
# conditions, from the published values by Newton's method with the smallest change.
_TSIT5_A = _stages("""
0.161
-0.0084806554923569885453 0.33548065549235698855
2.8971530571054935231 -6.3594484899750750223 4.3622954328695814992
5.325864828439256828 -11.748883564062828326 7.4955393428898364354 -0.092495066361755250551
5.8614554429464202545 -12.92096931784710974 8.1593678985761588664 -0.071584973281401000137 \
-0.028269050394068381098
0.096460766818065229507 0.01 0.47988965041449957483 1.3790085741037418837 -3.2900695154360807869 \
2.3247105240997740989
""")
_TSIT5 = Tableau(
    order=5,
    error_order=4,
    a=_TSIT5_A,
    b=(*_TSIT5_A[-1], Fraction(0)),
    c=_fractions("0 0.161 0.327 0.9 0.98002554090450968666 1 1"),
    error=_fractions(
        "-0.0017800110522257714244 -0.00081643445965674713125 0.0078808780102619963756 "
        "-0.14471100717326290907 0.58235716545255525612 -0.45808210592918697638 1/66"
    ),
    dense=_rows("""
1 -2.7637061972748258639 2.9132554618219126458 -1.0530884977290215524
0 0.1317 -0.2234 0.1017
0 3.9302962368947514958 -5.9410338721315046923 2.4906272856512527713
0 -12.411077166933676548 30.338188630282320631 -16.548102889244902199
0 37.50931341651103886 -88.178904894766400867 47.379521962819281221
0 -27.896526289197287903 65.091894674793672202 -34.8706578614966102
0 3/2 -4 5/2
"""),
    dense_order=4,
    reuse=True,
)

# Prince and Dormand 1981, RK8(7)13M, with the slope at its end as the fourteenth stage.
_DOPRI8_B = _fractions(
    "14005451/335480064 0 0 0 0 -59238493/1068277825 181606767/758867731 561292985/797845732 "
    "-1041891430/1371343529 760417239/1151165299 118820643/751138087 -528747749/2220607170 1/4 0"
)
_DOPRI8_B7 = _fractions(
    "13451932/455176623 0 0 0 0 -808719846/976000145 1757004468/5645159321 656045339/265891186 "
    "-3867574721/1518517206 465885868/322736535 53011238/667516719 2/45 0 0"
)
_DOPRI8 = Tableau(
    order=8,
    error_order=7,
    a=(
        *_stages("""
1/18
1/48 1/16
1/32 0 3/32
5/16 0 -75/64 75/64
3/80 0 0 3/16 3/20
29443841/614563906 0 0 77736538/692538347 -28693883/1125000000 23124283/1800000000
16016141/946692911 0 0 61564180/158732637 22789713/633445777 545815736/2771057229 -180193667/1043307555
39632708/573591083 0 0 -433636366/683701615 -421739975/2616292301 100302831/723423059 790204164/839813087 \
800635310/3783071287
246121993/1340847787 0 0 -37695042795/15268766246 -309121744/1061227803 -12992083/490766935 \
6005943493/2108947869 393006217/1396673457 123872331/1001029789
-1028468189/846180014 0 0 8478235783/508512852 1311729495/1432422823 -10304129995/1701304382 \
-48777925059/3047939560 15336726248/1032824649 -45442868181/3398467696 3065993473/597172653
185892177/718116043 0 0 -3185094517/667107341 -477755414/1098053517 -703635378/230739211 \
5731566787/1027545527 5232866602/850066563 -4093664535/808688257 3962137247/1805957418 65686358/487910083
403863854/491063109 0 0 -5068492393/434740067 -411421997/543043805 652783627/914296604 \
11173962825/925320556 -13158990841/6184727034 3936647629/1978049680 -160528059/685178525 \
248638103/1413531060 0
"""),
        _DOPRI8_B[:-1],
    ),
    b=_DOPRI8_B,
    c=_fractions(
        "0 1/18 1/12 1/8 5/16 3/8 59/400 93/200 5490023248/9719169821 13/20 1201146811/1299019798 1 1 1"
    ),
    error=_difference(_DOPRI8_B, _DOPRI8_B7),
    dense=_rows("""
1 -7.996761263790486361865 31.1442213212522922998 -65.79712730435734823407 76.96899662663752793571 \
-46.84745786826903683679 11.56987597966858144326
0
0
0
0
0 1.908530294550579734126 2.899381207214480932749 -42.39194375085604793207 97.65486805243986376871 \
-89.66224745420108130865 29.53595932224096549573
0 17.89353570779684034668 -106.6823230124730866254 271.4615252522669252196 -351.9590894323540704787 \
228.4704062692237707394 -58.94474197725919910539
0 22.40404263503764960495 -177.9982302239909061679 572.2774382921464602196 -901.8182281312234197382 \
691.7014237926069366082 -205.8629356951732775061
0 -18.13196700604900615926 159.8197667219791785943 -548.8365138811511913297 906.035751424747449543 \
-719.4995103604142351727 219.8527134870733435965
0 15.7160779937321409058 -129.4059582799762748856 433.8226621451232007095 -713.2972625035625330436 \
568.7939229394558633501 -174.9688792638501106965
0 1.584902801510554082331 -16.64159767422345517089 66.57280185873392998496 -124.9229830728340760549 \
109.8767496363782757719 -36.31168606705510527842
0 -1.837413343170384166929 20.26920272797305281298 -85.42621736197651905659 167.181706208211938775 \
-151.6412712978046504236 51.2158835280136992554
0 1.625718847048882379813 -20.29335167664547178743 89.15070808340859339325 -177.177092505404021686 \
161.6968732319197384428 -54.75285598032772074249
0 -0.4999999999999988515775 7.555555555555574586422 -34.16666666666676414811 68.00000000000020389945 \
-62.22222222222241944236 21.33333333333340395618
0 -22.50675305915075598358 171.8227981721164011353 -500.9346292205959832565 707.0945428281133692372 \
-486.1426253871506133281 130.6666666666675821957
0 -10.15991360751597970474 89.51053516121778778778 -315.7320374460737839142 534.2387905052253104704 \
-428.5240412795205218256 130.6666666666671871864
0 -3.583680856487376696487e-14 -31.99999999999957350466 159.9999999999985283444 -287.999999999997542628 \
223.9999999999979734254 -63.99999999999934980037
"""),
    dense_order=7,
    more=_stages("""
0.04436300176729670451044 0 0 0 0 0.05039663353124490744454 0.2211796223269006815707 \
0.005324746787651663156672 -0.009020190044274482237024 -0.002527639425718344288216 \
0.002603318728748663932969 0.005804310189204599460912 0.005488995178193572216866 \
-0.01259503554386159735985
0.04374194900100987253669 0 0 0 0 0.1606423829829090856113 0.2252311951813035545731 \
0.1023453789338015219122 0.07116447521453953726152 0.08439998332495853652009 0.002920607549866757307837 \
-0.03379436953403026120823 0.004429475857413808212705 0.0279011579928409750552 0
0.04934050379694588827297 0 0 0 0 0.07091415801132900226549 0.1931752490742573451403 \
0.0411975217929722440643 0.02412035054810267697705 0.0104834360650788155186 -0.005417373653844260758593 \
0.004193276517557132127829 -0.00862563673921478817596 0.007511749545139241057792 0.1208598379981027494416 \
-0.007753072956426045931396
""")[1:],
    more_c=_fractions("0.311017763495386368408 0.6889822365046133877824 1/2"),
    reuse=True,
)

TABLEAUS: Mapping[str, Tableau] = MappingProxyType(
    {
        "euler": _EULER,
        "midpoint": _MIDPOINT,
        "heun": _HEUN,
        "fehlberg2": _FEHLBERG2,
        "ralston": _RALSTON,
        "heun3": _HEUN3,
        "bosh3": _BOSH3,
        "rk4": _RK4,
        "three_eighths": _THREE_EIGHTHS,
        "dopri5": _DOPRI5,
        "tsit5": _TSIT5,
        "dopri8": _DOPRI8,
    }
)
