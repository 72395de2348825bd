(** Worst cases on the real line: a parabola on an interval, from whose left end the run walks towards its right one. The gaps
    are as large as the theorems allow. *)

From FrankWolfe Require Import setting assumptions lemmas huber.

(** The real numbers as a space. *)
Definition line : InnerProductSpace := {|
  vector := R;
  plus := Rplus;
  scale := Rmult;
  inner := Rmult;
  inner_sym := Rmult_comm;
  inner_plus := Rmult_plus_distr_r;
  inner_scale := Rmult_assoc;
  inner_nonneg := Rle_0_sqr;
|}.

Definition interval (D : R) (x : line) : Prop := 0 <= x <= D.

(** [-slope x + beta x^2/2] *)
Definition parabola (slope beta D : R) : Problem line := {|
  K := interval D;
  L := fun _ (x : line) => - slope * x + beta * x ^ 2 / 2;
  G := fun _ (x : line) => (- slope + beta * x)%R;
  beta := beta;
|}.

(** Where steps of the sizes [eta t] towards [D] lead, from 0. *)
Fixpoint walk (D : R) (eta : nat -> R) (t : nat) : R :=
  match t with
  | S (S _ as s) => walk D eta s + eta s * (D - walk D eta s)
  | _ => 0
  end.

(** [n] such steps. The oracle answers [D] throughout, and there the gap is attained. *)
Definition walk_run (slope beta D : R) (eta : nat -> R) (n : nat) : Run line := {|
  T := n;
  W := walk D eta : nat -> line;
  V := fun _ => D;
  eps := fun _ => 0;
  eta := eta;
  gap := fun t => (slope - beta * walk D eta t) * (D - walk D eta t);
|}.

(** The slope for which one step of size [e] ends [M] below the start. *)
Definition worst_slope (M beta D e : R) : R := (M / e + beta * e * D ^ 2 / 2) / D.

Definition worst_case (M beta D e : R) : Problem line := parabola (worst_slope M beta D e) beta D.

Definition worst_run (M beta D e : R) : Run line := walk_run (worst_slope M beta D e) beta D (fun _ => e) 1.

(** * Proof *)

(** ** Of every parabola *)

Section Walk.
  Variables (slope beta D : R) (eta : nat -> R) (n : nat).
  Hypotheses (bent : 0 <= beta) (D_nonneg : 0 <= D) (range : forall t, (1 <= t)%nat -> 0 <= eta t <= 1).

  Local Notation P := (parabola slope beta D).
  Local Notation run := (walk_run slope beta D eta n).

  Lemma walk_in_interval t : interval D (walk D eta t).
  Proof.
    unfold interval. induction t as [| [| t] IH]; [simpl; lra | simpl; lra |].
    specialize (range (S t) ltac:(lia)).
    change (walk D eta (S (S t))) with (walk D eta (S t) + eta (S t) * (D - walk D eta (S t))). nra.
  Qed.

  Lemma parabola_is_static : Static P.
  Proof. now intros t X. Qed.

  Lemma parabola_is_convex : Convex P.
  Proof.
    intros t X Y _ _. simpl. assert (0 <= beta * (X - Y) ^ 2) by (apply Rmult_le_pos; [lra | apply pow2_ge_0]). lra.
  Qed.

  Lemma interval_diameter : Diameter P D.
  Proof. intros X Y (HX & HX') (HY & HY'). simpl. nra. Qed.

  Lemma walk_steps : FrankWolfeStep P run false.
  Proof.
    split; [apply walk_in_interval |]. intros t (first & _). split; [now apply range |].
    destruct t as [| t]; [lia |]. simpl. ring.
  Qed.

  Lemma parabola_initial_gap M : (forall x, 0 <= x <= D -> slope * x - beta * x ^ 2 / 2 <= M) -> Initial_gap P run M.
  Proof. intros above Z inside. specialize (above Z inside). simpl. lra. Qed.

  (** Wherever the run is, the loss falls towards [D]. *)
  Hypotheses (some : (1 <= n)%nat) (downhill : forall t, iteration run t -> beta * walk D eta t <= slope).

  Lemma walk_setting : Setting P run.
  Proof.
    split; simpl.
    - assumption.
    - intros X Y s (HX & HX') (HY & HY') between. simpl. unfold interval. nra.
    - split; [assumption |]. intros t X Y _ _. simpl. apply Req_le. field.
    - intros t inside. specialize (downhill t inside). simpl. split; [unfold interval; lra |].
      (* (slope - beta W_t) (D - Z) >= 0 *)
      intros Z (HZ & HZ'). unfold gradient. simpl. nra.
    - intros t _. exists D. unfold gradient. simpl. split; [unfold interval; lra |]. apply Req_le. ring.
  Qed.
End Walk.

(** With a whole first step it is at [D] from then on. *)
Lemma walk_arrives D eta t : eta 1%nat = 1 -> walk D eta (S (S t)) = D.
Proof.
  intros whole. induction t as [| t IH]; [simpl; rewrite whole; ring |].
  change (walk D eta (S (S (S t)))) with (walk D eta (S (S t)) + eta (S (S t)) * (D - walk D eta (S (S t)))). rewrite IH. ring.
Qed.

(** A run of one iteration sees the start alone. *)
Lemma mean_of_one f : mean f 1 = f 1%nat.
Proof. unfold mean. simpl. field. Qed.

(** ** Of the worst case *)

(** Where the first step is the best fixed one, either of its two kinds, it is the short step too. *)
Lemma short_step_along_worst_gap M C e : 0 < M -> 0 <= C -> 0 < e <= 1 -> (e = 1 /\ C <= 2 * M) \/ C * e ^ 2 = 2 * M ->
  short_step (M / e + C * e / 2) C = e.
Proof.
  intros HM HC range [(whole & large) | lowest].
  - rewrite whole. unfold short_step. destruct (Rle_dec _ 0); [lra |]. destruct (Rle_dec C _); lra.
  - (* the gap is C e *)
    replace (M / e + C * e / 2) with (C * e) by (replace M with (C * e ^ 2 / 2) by lra; field; lra).
    assert (0 < C) by nra. assert (0 < C * e) by (apply Rmult_lt_0_compat; lra). unfold short_step.
    destruct (Rle_dec (C * e) 0); [lra |]. destruct (Rle_dec C (C * e)); [nra | field; lra].
Qed.

Section Worst_case.
  Variables (M beta D : R).
  Hypotheses (M_positive : 0 < M) (bent : 0 <= beta) (D_positive : 0 < D).

  Local Notation e := (best_fixed M (beta * D ^ 2) 1).
  Local Notation P := (worst_case M beta D e).
  Local Notation run := (worst_run M beta D e).

  Lemma worst_curvature : 0 <= beta * D ^ 2.
  Proof. apply Rmult_le_pos; [assumption | apply pow2_ge_0]. Qed.

  Lemma worst_step_in_range : 0 < e <= 1.
  Proof. pose proof worst_curvature. apply best_fixed_in_range; lra. Qed.

  (** Either the whole step is best and the minimum lies at [D] or beyond, or it lies at [e D]. *)
  Lemma best_step_ends_lowest : (e = 1 /\ beta * D ^ 2 <= 2 * M) \/ beta * D ^ 2 * e ^ 2 = 2 * M.
  Proof.
    pose proof worst_curvature. unfold best_fixed.
    destruct (Rle_dec (beta * D ^ 2 * 1) (2 * M)) as [short | long]; [left; lra | right].
    rewrite Rmult_1_r in *. rewrite pow2_sqrt.
    - field. nra.
    - apply Rmult_le_pos; [lra |]. left. apply Rinv_0_lt_compat. lra.
  Qed.

  Lemma worst_slope_nonneg : 0 <= worst_slope M beta D e.
  Proof.
    destruct worst_step_in_range as (positive & _). pose proof worst_curvature.
    assert (0 <= M / e) by (apply Rmult_le_pos; [lra | left; now apply Rinv_0_lt_compat]).
    apply Rmult_le_pos; [nra | left; now apply Rinv_0_lt_compat].
  Qed.

  (** No point of the interval is more than [M] below the start: the tuned step is what makes it so. *)
  Lemma worst_fall x : 0 <= x <= D -> worst_slope M beta D e * x - beta * x ^ 2 / 2 <= M.
  Proof.
    intros (low & high). pose proof worst_step_in_range.
    assert (product : 0 <= (e * D - x) * (2 * M - beta * e * D * x)).
    { destruct best_step_ends_lowest as [(whole & short) | lowest].
      - rewrite whole. assert (beta * D * x <= beta * D * D) by (apply Rmult_le_compat_l; nra). apply Rmult_le_pos; nra.
      - replace (2 * M - beta * e * D * x) with (beta * e * D * (e * D - x)) by (rewrite <- lowest; ring).
        assert (0 <= beta * e * D) by (repeat apply Rmult_le_pos; lra).
        assert (0 <= beta * e * D * (e * D - x) ^ 2) by (apply Rmult_le_pos; [lra | apply pow2_ge_0]). lra. }
    (* M - slope x + beta x^2/2 = (e D - x) (2 M - beta e D x)/(2 e D) *)
    apply Rminus_le. unfold worst_slope.
    replace (_ - M) with (- ((e * D - x) * (2 * M - beta * e * D * x) * / (2 * e * D))) by (field; lra).
    assert (0 < / (2 * e * D)) by (apply Rinv_0_lt_compat; repeat apply Rmult_lt_0_compat; lra). nra.
  Qed.

  Lemma worst_downhill t : iteration run t -> beta * walk D (fun _ => e) t <= worst_slope M beta D e.
  Proof.
    intros (first & last). simpl in last. replace t with 1%nat by lia. simpl. rewrite Rmult_0_r.
    exact worst_slope_nonneg.
  Qed.

  Lemma worst_setting : Setting P run.
  Proof. apply walk_setting; try lra; [lia | exact worst_downhill]. Qed.

  Lemma worst_initial_gap : Initial_gap P run M.
  Proof. apply parabola_initial_gap. exact worst_fall. Qed.

  Lemma worst_oscillation : Oscillation P run M.
  Proof.
    intros t Z (first & last) inside. simpl in last. replace t with 1%nat by lia. now apply worst_initial_gap.
  Qed.

  Lemma worst_steps : FrankWolfeStep P run false.
  Proof. apply walk_steps; [lra | intros _ _; pose proof worst_step_in_range; lra]. Qed.

  Lemma worst_steps_or_lower : FrankWolfeStep P run true.
  Proof. exact (exact_step_or_lower P run worst_setting worst_steps). Qed.

  Lemma worst_constant_step : ConstantStep P run false e.
  Proof. repeat split. apply worst_step_in_range. Qed.

  (** The gap is what Theorem A gives for [T = 1]. *)
  Lemma worst_mean_gap : mean (gap run) (T run) = phi_inverse (M / 1) (beta * D ^ 2).
  Proof.
    pose proof worst_step_in_range as (positive & _). pose proof worst_curvature.
    rewrite <- best_fixed_reaches_phi_inverse by lra.
    change (mean (gap run) 1 = M / (e * 1) + beta * D ^ 2 * e / 2). rewrite mean_of_one.
    change ((worst_slope M beta D e - beta * 0) * (D - 0) = M / (e * 1) + beta * D ^ 2 * e / 2).
    unfold worst_slope. field. lra.
  Qed.

  (** The tuned step is the short step. *)
  Lemma worst_short_step : ShortStepOrBetter P run.
  Proof.
    intros t (first & last). simpl in last. replace t with 1%nat by lia. left.
    replace (ghat P run 1) with (worst_slope M beta D e * D) by (unfold ghat, gradient; simpl; ring).
    replace (setting.beta P * distance2 run 1) with (beta * D ^ 2) by (unfold distance2; simpl; ring).
    pose proof worst_step_in_range.
    replace (worst_slope M beta D e * D) with (M / e + beta * D ^ 2 * e / 2) by (unfold worst_slope; field; lra).
    symmetry. apply short_step_along_worst_gap;
      [assumption | apply worst_curvature | apply worst_step_in_range | apply best_step_ends_lowest].
  Qed.
End Worst_case.

(** ** Of a linear loss *)

(** Without curvature a whole step is best, and any number of iterations leaves the bounds attained. *)
Section Linear.
  Variables (M D : R) (n : nat).
  Hypotheses (M_positive : 0 < M) (D_positive : 0 < D) (some : (1 <= n)%nat).

  Local Notation P := (parabola (M / D) 0 D).
  Local Notation run := (walk_run (M / D) 0 D (fun _ => 1) n).

  Lemma linear_slope_positive : 0 < M / D.
  Proof. now apply Rdiv_lt_0_compat. Qed.

  Lemma linear_setting : Setting P run.
  Proof.
    pose proof linear_slope_positive. apply walk_setting; try assumption; try lra. intros t _. lra.
  Qed.

  Lemma whole_step_in_range t : (1 <= t)%nat -> 0 <= 1 <= 1.
  Proof. lra. Qed.

  Lemma linear_oscillation : Oscillation P run M.
  Proof.
    pose proof linear_slope_positive. intros t Z _ (low & high). simpl.
    destruct (walk_in_interval D (fun _ => 1) (Rlt_le _ _ D_positive) whole_step_in_range t) as (above & _).
    assert (M / D * Z <= M / D * D) by (apply Rmult_le_compat_l; lra).
    assert (0 <= M / D * walk D (fun _ => 1) t) by (apply Rmult_le_pos; lra).
    replace (M / D * D) with M in * by (field; lra). lra.
  Qed.

  Lemma linear_initial_gap : Initial_gap P run M.
  Proof. intros Z inside. apply linear_oscillation; [| assumption]. split; [lia | assumption]. Qed.

  Lemma linear_steps : FrankWolfeStep P run false.
  Proof. apply walk_steps; [lra | exact whole_step_in_range]. Qed.

  Lemma linear_steps_or_lower : FrankWolfeStep P run true.
  Proof. exact (exact_step_or_lower P run linear_setting linear_steps). Qed.

  (** What is sure of a short step is true of the whole one: [s ghat <= ghat]. *)
  Lemma linear_short_step : ShortStepOrBetter P run.
  Proof.
    pose proof linear_slope_positive as slope. intros t (first & _). right. intros s range.
    destruct (walk_in_interval D (fun _ => 1) (Rlt_le _ _ D_positive) whole_step_in_range t) as (_ & below).
    set (g := M / D * (D - walk D (fun _ => 1) t)). assert (0 <= g) by (apply Rmult_le_pos; lra).
    replace (ghat P run t) with g by (unfold ghat, gradient, g; simpl; ring).
    replace (fall P run t) with g.
    - simpl beta. assert (0 <= (1 - s) * g) by (apply Rmult_le_pos; lra). lra.
    - unfold fall, g. cbn [L W parabola walk_run].
      destruct t as [| t]; [lia |]. rewrite (walk_arrives D _ t) by reflexivity. field. lra.
  Qed.

  (** The first gap is [M], and all others are 0. *)
  Lemma linear_total_gap m : sum (gap run) (S m) = M.
  Proof.
    induction m as [| m IH]; [simpl; field; lra |].
    change (sum (gap run) (S m) + (M / D - 0 * walk D (fun _ => 1) (S (S m))) * (D - walk D (fun _ => 1) (S (S m))) = M).
    rewrite walk_arrives by reflexivity. rewrite IH. ring.
  Qed.

  Lemma linear_mean_gap : mean (gap run) (T run) = M / INR n.
  Proof. unfold mean. simpl T. f_equal. replace n with (S (pred n)) at 2 by lia. apply linear_total_gap. Qed.
End Linear.
